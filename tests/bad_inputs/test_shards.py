"""WebDataset shards: read as far as they are whole, and nothing leaves them."""

import io
import tarfile

import pytest
from PIL import Image

from src.data import images, layouts, sources
from src.data.images import ImagePreprocess
from tests.helpers.bad_files import BOTH, EMPTY, ONE, RED, assert_rows, encoded, flipped, outcome


def tar_of(*members: tuple, **options) -> bytes:
    """A tar of (name, content) files; a dict as third sets fields of the header."""
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream,
        mode="w",
        format=options.get("format", tarfile.GNU_FORMAT),
        errors="surrogateescape",
    ) as tar:
        for name, content, *fields in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in (fields[0] if fields else {}).items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def with_size(content: bytes, at: int, field: bytes) -> bytes:
    """The header at `at` with another size, and the checksum that fits it."""
    header = bytearray(content[at : at + 512])
    header[124:136] = field.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:at] + bytes(header) + content[at + 512 :]


DOT = encoded(Image.new("RGB", (8, 8), RED), "png")
GOOD = (("a.png", DOT), ("a.txt", b"a red fox"))
TAIL = (("b.png", DOT), ("b.txt", b"an owl"))
NO_JSON = (None, "its .json is not a JSON object")
REST = None, "shard cannot be read on"
CALLED = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
SHARDS: dict[str, tuple[bytes, list]] = {
    "whole": (tar_of(*GOOD, *TAIL), BOTH),
    "pax_format": (tar_of(*GOOD, format=tarfile.PAX_FORMAT), ONE),
    "of_0_bytes": (b"", [REST]),
    "of_garbage": (b"no tar at all" * 100, [REST]),
    "of_zeros": (bytes(10_240), []),
    "gzipped": (b"\x1f\x8b\x08" + bytes(600), [REST]),
    "cut_in_a_header": (tar_of(*GOOD, *TAIL)[: 2048 + 100], [*ONE, REST]),
    "cut_between_members": (tar_of(*GOOD, *TAIL)[:2048], ONE),
    "cut_in_an_image": (
        tar_of(*TAIL, ("c.png", DOT * 100))[:-9000][:3000],
        [("an owl", None), EMPTY, REST],
    ),
    "with_a_flipped_header": (flipped(tar_of(*GOOD, *TAIL), 2048 + 150), [*ONE, REST]),
    "with_names_above": (tar_of(("../../x.png", DOT), ("../../x.txt", b"a red fox")), ONE),
    "with_absolute_names": (tar_of(("/etc/x.png", DOT), ("/etc/x.txt", b"a red fox")), ONE),
    "with_backslashes": (tar_of(("..\\x.png", DOT), ("..\\x.txt", b"a red fox")), ONE),
    "with_a_link": (
        tar_of(("a.png", b"", CALLED), ("a.txt", b"a fox"), *TAIL),
        [("a fox", layouts.NO_IMAGE), BOTH[1]],
    ),
    "with_a_hard_link": (
        tar_of(
            ("a.txt", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}), ("a.png", DOT)
        ),
        [EMPTY],
    ),
    "with_a_device": (
        tar_of(("a.png", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}), *TAIL),
        BOTH[1:],
    ),
    "with_a_pipe": (tar_of(("a.png", b"", {"type": tarfile.FIFOTYPE}), *TAIL), BOTH[1:]),
    "with_a_folder": (tar_of(("d.png", b"", {"type": tarfile.DIRTYPE}), *GOOD), ONE),
    "with_a_sample_twice": (tar_of(*GOOD, *TAIL, *GOOD), [*BOTH, ("a red fox", "id occurs twice")]),
    "with_a_member_twice": (tar_of(GOOD[0], ("a.txt", b"x"), GOOD[1]), ONE),
    "without_a_caption": (tar_of(GOOD[0], *TAIL), [EMPTY, BOTH[1]]),
    "with_a_caption_of_0_bytes": (tar_of(GOOD[0], ("a.txt", b"")), [EMPTY]),
    "with_a_caption_of_spaces": (tar_of(GOOD[0], ("a.txt", b" \n")), [EMPTY]),
    "with_captions_that_are_no_utf8": (
        tar_of(GOOD[0], ("a.txt", b"caf\xe9")),
        [("café", None)],
    ),
    "with_a_json_that_is_none": (tar_of(GOOD[0], ("a.json", b"{cut")), [NO_JSON]),
    "with_a_json_nested_too_deep": (tar_of(GOOD[0], ("a.json", b"[" * 100_000)), [NO_JSON]),
    "with_a_json_that_is_a_list": (tar_of(GOOD[0], ("a.json", b'["caption"]')), [NO_JSON]),
    "with_half_a_surrogate_pair": (
        tar_of(GOOD[0], ("a.json", b'{"caption": "a \\ud83e fox"}')),
        [("a \ufffd fox", None)],
    ),
    "with_names_that_are_no_utf8": (
        tar_of(("caf\udce9.png", DOT), ("caf\udce9.txt", b"a red fox")),
        ONE,
    ),
    "with_a_name_of_2000_characters": (
        tar_of(("x" * 2000 + ".png", DOT), ("x" * 2000 + ".txt", b"a red fox")),
        ONE,
    ),
    "with_a_name_like_a_reference": (
        tar_of(("a.tar::b@1+2/x.png", DOT), ("a.tar::b@1+2/x.txt", b"a red fox")),
        ONE,
    ),
    "with_names_without_a_stem": (tar_of((".png", DOT), (".txt", b"a red fox")), ONE),
    "with_a_size_below_0": (with_size(tar_of(*GOOD, *TAIL), 2048, b"\xff" * 12), [*ONE, REST]),
    "with_a_size_of_8_GB": (
        with_size(tar_of(*GOOD), 1024, b"77777777777"),
        [("a red fox", None), REST],
    ),
    "with_a_size_of_an_exabyte": (
        with_size(tar_of(*GOOD), 1024, b"\x80\0\0\0\x10" + bytes(7)),
        [("a red fox", None), REST],
    ),
    "with_a_long_name_of_an_exabyte": (
        with_size(tar_of(("x" * 300 + ".png", DOT)), 0, b"\x80\0\0\0\x10" + bytes(7)),
        [REST],
    ),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_is_read_as_far_as_it_is_whole_and_nothing_leaves_it(tmp_path, name):
    content, expected = SHARDS[name]
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "00000.tar").write_bytes(content)
    rows = outcome(folder)
    assert [file.name for file in tmp_path.rglob("*")] == ["inside", "00000.tar"], (
        "nothing is unpacked"
    )
    assert_rows(rows, expected)
    pixels, bad = images.cache(
        sources.read_pairs(folder)[0], tmp_path / "cache", geometry=ImagePreprocess(8), name="shard"
    )
    assert len(pixels.ids) + len(bad) == len([reason for _, reason in expected if reason is None])


def test_a_broken_table_beside_a_shard_is_named(tmp_path):
    (tmp_path / "00000.tar").write_bytes(tar_of(*GOOD))
    (tmp_path / "00000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="00000.parquet cannot be read"):
        sources.read_pairs(tmp_path)
