"""A fuzzer on the readers: images, tables, shards and captions of any bytes are read or refused.

    python tools/fuzz_readers.py --minutes 10 [--only images|tables] [--keep FOLDER]

FOLDER keeps what it learns, and the input that broke something. Fails on any exception but the
documented ones, on a fatal signal, on an input that takes longer than 20 seconds, and on memory
that grows. The first byte of an input chooses its reader.
pip install atheris==3.0.0 for this script alone.
"""

import argparse
import gc
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SECONDS = 20  # for one input
GROWTH = 400  # MiB from the first look at the memory to any later one
LOOK = 5_000  # executions between two looks at the memory
IMAGE = "image"
FILES = (
    "metadata.csv",
    "table.tsv",
    "metadata.jsonl",
    "0.tar",
    "captions_x.json",
    "part-000001.json",
    "a.txt",
    "list.json",
    "truth.csv",
)
READERS = {"all": (IMAGE, *FILES), "images": (IMAGE,), "tables": FILES}


def small_images() -> list[bytes]:
    """A small image in each format and some odd modes."""
    from PIL import Image

    colour = Image.linear_gradient("L").resize((9, 7)).convert("RGB")
    exif = Image.Exif()
    found = []
    exif[0x0112] = 6
    for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm", "ico", "jpeg2000", "avif"):
        stream = io.BytesIO()
        colour.save(
            stream, kind, **({"exif": exif} if kind in ("jpeg", "png", "webp", "tiff") else {})
        )
        found.append(stream.getvalue())
    for mode, kind in (
        ("CMYK", "jpeg"),
        ("P", "png"),
        ("LA", "png"),
        ("1", "tiff"),
        ("F", "tiff"),
        ("RGBA", "webp"),
    ):
        stream = io.BytesIO()
        colour.convert(mode).save(stream, kind)
        found.append(stream.getvalue())
    return found


def shard() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in (
            ("a.png", b"x"),
            ("a.txt", b"a fox"),
            ("b.png", b"x"),
            ("b.json", b'{"caption": ["an owl", "two owls"]}'),
            ("._b.json", b"x"),
            ("c_v1.5_a.jpg", b"x"),
            ("c_v1.5_b.jpg", b"x"),
            ("c_v1.5_a.txt", b"caf\xe9"),
            ("c_v1.5_b.txt", b"a.txt"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name == "c_v1.5_b.txt":
                member.type = tarfile.LNKTYPE
                member.linkname = "a.txt"
                member.size = 0
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def seeds(only: str) -> list[bytes]:
    """Good inputs for each reader, to begin from."""
    row = {"file_name": "fox.png", "prompt": "a \ud83e fox"}
    coco = {
        "images": [{"id": 1, "file_name": "fox.png"}],
        "annotations": [{"image_id": 1, "id": 2, "caption": "a fox"}],
    }
    texts = (
        'file_name,prompt\nfox.png,"a ""red"" fox"\nFOX,"a \\"fox\\", red"\n'
        '.\\fox.png,"a sign\nx,caf\xe9\n',
        "file_name\tprompt\nfox.png\ta fox\n",
        json.dumps(row) + "\n{cut\n",
        "",
        json.dumps(coco),
        json.dumps({"fox.png": {"p": "a fox"}}),
        "\ufeffa fox\n\nan owl\n",
        json.dumps([{"image": "fox", "caption": ["a fox", "a red fox"]}, 1, row]),
        'imgId,prompt\n007,"a ""red"" fox"\n1e5,caf\xe9\n',
    )
    good = {name: [text.encode()] for name, text in zip(FILES, texts, strict=True)} | {
        "0.tar": [shard()]
    }
    if IMAGE in READERS[only]:
        good[IMAGE] = small_images()
    return [bytes([n]) + content for n, name in enumerate(READERS[only]) for content in good[name]]


def reader(folder: Path, only: str) -> Callable[[bytes], None]:
    """What is done with each input. Its files are written into `folder`."""
    from src.data import images, sources

    (folder / "fox.png").touch()
    geometry = images.ImagePreprocess(32)
    names = READERS[only]

    def image(content: bytes) -> None:
        try:
            pixels = images.from_bytes(content, geometry)
        except (
            Exception
        ):  # any exception is documented; looked for is what cannot be caught or never ends
            return
        assert pixels.shape == (32, 32, 3) and pixels.dtype.name == "uint8"

    def table(name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        try:
            if name == "a.txt":
                with redirect_stdout(io.StringIO()):  # it counts the rows that it leaves out
                    prompts = sources.read_text(str(folder / name))["prompt"]
                assert not sources.blank(prompts).any()
                return
            if name == "truth.csv":
                truth = sources.read_truth(folder / name)
                assert sum(truth.null_count().row(0)) == 0
                truth.write_ipc(io.BytesIO())
                return
            pairs, rejected = sources.read_pairs(folder)
            assert rejected["reason"].null_count() == 0 and not sources.blank(pairs["prompt"]).any()
            pairs.write_ipc(io.BytesIO())  # what polars took as text is text
        except ValueError:
            pass
        finally:
            (folder / name).unlink()

    def one(content: bytes) -> None:
        name = names[content[0] % len(names)] if content else names[0]
        image(content[1:]) if name == IMAGE else table(name, content[1:])

    return one


def watched(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """`function`, and a look at the process's memory now and then."""
    process = psutil.Process()
    count = 0
    first = 0

    def one(content: bytes) -> None:
        nonlocal count, first
        function(content)
        count += 1
        if count % LOOK == 0:
            gc.collect()
            now = process.memory_info().rss >> 20
            first = first or now
            print(f"{count} executions, {now} MiB", flush=True)
            if now > first + GROWTH:
                raise MemoryError(f"from {first} to {now} MiB within {count} executions")

    return one


def fuzz(only: str, options: list[str]) -> None:
    """In a process of its own, since libFuzzer ends the one that it runs in."""
    import atheris

    warnings.simplefilter("ignore")
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        with atheris.instrument_imports(include=["src", "PIL", "tarfile"]):
            one = reader(Path(folder), only)
            for content in seeds(only):  # what is only loaded once is not counted
                one(content)
        atheris.Setup([sys.argv[0], *options], watched(one))
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", choices=READERS, default="all")
    parser.add_argument("--keep", metavar="FOLDER", help="instead of a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary)
        (folder / "corpus").mkdir(parents=True, exist_ok=True)
        for n, content in enumerate(seeds(arguments.only)):
            (folder / "corpus" / f"seed{n}").write_bytes(content)
        limits = [
            f"-max_total_time={round(60 * arguments.minutes)}",
            f"-timeout={SECONDS}",
            "-rss_limit_mb=4096",
            "-max_len=8192",
        ]
        told = [f"-artifact_prefix={folder}/", "-print_final_stats=1"]
        done = subprocess.run(
            [
                sys.executable,
                __file__,
                "--child",
                arguments.only,
                str(folder / "corpus"),
                *limits,
                *told,
            ]
        )
        broke = [file for file in folder.iterdir() if file.is_file()]
        for file in broke:
            print(f"{file.name}: {file.read_bytes()[:400]!r}")
    print(
        "no crash, hang or growth"
        if done.returncode == 0
        else f"broken: exit status {done.returncode}"
    )
    return 1 if done.returncode else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
