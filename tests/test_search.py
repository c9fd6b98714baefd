"""The index of a result, and the commands search and export on it."""

import io
import sys
from contextlib import redirect_stdout

import faiss
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from src.data import prompts
from src.errors import UserError
from src.metrics import l2_normalize
from src.submit import Index, export, search
from src.submit.map import coordinates, principal_components
from src.submit.vectors import vectors_file
from tests.helpers.results import PROMPTS, write_result

FOX = "two foxes on a snowy mountain"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return write_result(tmp_path_factory.mktemp("result"))


@pytest.fixture(scope="module")
def index(result):
    return Index(result)


def command(*arguments):
    out = io.StringIO()
    with redirect_stdout(out):
        status = search.main([str(argument) for argument in arguments])
    return status, out.getvalue()


def test_a_text_finds_the_image_that_was_made_from_it(index):
    for row, prompt in enumerate(PROMPTS):
        results = index.search(prompt, 3)
        assert results["row"][0] == row
        assert results["similarity"][0] == pytest.approx(1, abs=1e-5)
        assert results["prompt"][0] == prompt
        assert results["similarity"].is_sorted(descending=True)
    assert index.search("foxes in snow, two of them", 1)["prompt"][0] == FOX


def test_the_nearest_are_those_of_brute_force(tmp_path):
    random = np.random.default_rng(0)
    x = l2_normalize(random.standard_normal((3000, 384), dtype=np.float32))
    index = Index(write_result(tmp_path, vectors=x, row_group_size=700))
    brute = NearestNeighbors(n_neighbors=25, algorithm="brute", metric="cosine").fit(x)
    for query in l2_normalize(random.standard_normal((5, 384), dtype=np.float32)):
        distance, rows = brute.kneighbors(query[None])
        results = index.by_vector(query, 25)
        assert results["row"].to_list() == rows[0].tolist()
        np.testing.assert_allclose(1 - results["similarity"].to_numpy(), distance[0], atol=1e-5)
        assert results["prompt"].to_list() == [f"prompt {row}" for row in rows[0]]


def test_only_confident_images_are_found(index):
    confidence = index.table["confidence"]
    least = float(confidence.sort()[-2])
    results = index.search(FOX, 20, min_confidence=least)
    assert len(results) == 2 and results["confidence"].min() == pytest.approx(least)
    assert len(index.search(FOX, min_confidence=2)) == 0


def test_an_image_is_nearest_to_itself(index):
    identifier = index.table["id"][3]
    assert index.near(identifier, 2)["id"][0] == identifier


def test_vectors_are_copied_once_and_again_when_the_file_changed(tmp_path):
    file = write_result(tmp_path)
    Index(file)
    written = vectors_file(file).stat().st_mtime_ns
    Index(file)
    assert vectors_file(file).stat().st_mtime_ns == written

    other = l2_normalize(np.random.default_rng(1).standard_normal((3, 384), dtype=np.float32))
    write_result(tmp_path, vectors=other)
    np.testing.assert_allclose(Index(file).vectors(), other, atol=1e-6)


def test_duplicates_are_groups_of_chains(tmp_path):
    x = np.zeros((7, 384), np.float32)
    angles = np.radians([0, 10, 20, 90, 100, 180, 250])  # 0-1-2 a chain, 3-4 a pair
    x[:, 0] = np.cos(angles)
    x[:, 1] = np.sin(angles)
    found = Index(write_result(tmp_path, vectors=x)).duplicates(np.cos(np.radians(15)))
    members = found.groups.group_by("group", maintain_order=True).agg("id", "size")
    assert members["id"].to_list() == [["0.png", "1.png", "2.png"], ["3.png", "4.png"]]
    assert members["size"].to_list() == [[3, 3, 3], [2, 2]]
    assert found.pairs["similarity"].to_list() == pytest.approx([np.cos(np.radians(10))] * 3)
    assert {frozenset(pair) for pair in found.pairs.select("id", "other").rows()} == {
        frozenset(("0.png", "1.png")),
        frozenset(("1.png", "2.png")),
        frozenset(("3.png", "4.png")),
    }


# --- the command ---


def test_the_command_prints_a_table_and_writes_it(result, tmp_path):
    status, out = command(result, FOX, "-k", 3, "--out", tmp_path / "found.csv")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == ["rank", "similarity", "confidence", "id", "nearest", "prompt"]
    assert lines[1].split()[:2] == ["1", "1.000"] and FOX in lines[1]
    assert pl.read_csv(tmp_path / "found.csv").height == 3


def test_the_page_shows_thumbnails_and_escapes_what_strangers_wrote(result, tmp_path):
    page = tmp_path / "page.html"
    status, _ = command(result, "<script>alert(1)</script> & more", "--html", page)
    text = page.read_text(encoding="utf-8")
    assert status == 0
    assert text.count("data:image/jpeg;base64,") == len(PROMPTS)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "http://" not in text and "https://" not in text


def test_no_control_character_reaches_the_terminal(tmp_path):
    x = l2_normalize(np.ones((1, 384), np.float32))
    file = write_result(tmp_path, vectors=x, ids=["\x1b[2J\nfox.png"])
    _, out = command(file, "fox")
    assert "\x1b" not in out and len(out.splitlines()) == 2


def test_duplicates_as_a_command(tmp_path):
    x = np.repeat(l2_normalize(np.eye(3, 384, dtype=np.float32)), 2, axis=0)
    status, out = command(write_result(tmp_path, vectors=x), "--duplicates", 0.95)
    assert status == 0
    assert "3 groups of 6 images above 0.95; without the repeats 3 of 6 images remain" in out


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["  "], "the query is empty"),
        (["x" * 1_000_000], "the query has 1,000,000 characters; at most 2,000"),
        (["--near", "nowhere.png"], "has no id 'nowhere.png'; its 6 ids look like"),
        (["--image", "nowhere.png"], "nowhere.png is not a file"),
        (["fox", "-k", "0"], "0 results were asked for"),
        (["fox", "--images", "/nowhere"], "/nowhere is not a folder"),
        (["--duplicates", "1.5"], "must be within 0..1, got 1.5"),
    ],
)
def test_a_bad_query_is_refused_with_a_reason(result, capsys, arguments, message):
    assert search.main([str(result), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_one_query_is_asked_for(result, capsys):
    for arguments in ([], ["fox", "--near", "a"]):
        with pytest.raises(SystemExit):
            search.main([str(result), *arguments])
        assert "give a text, or one of" in capsys.readouterr().err


def test_a_file_of_another_model_or_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere.parquet does not exist: write it by predict"):
        Index(tmp_path / "nowhere.parquet")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(UserError, match="is not a Parquet file"):
        Index(tmp_path / "text.parquet")
    pl.DataFrame({"id": ["a"], "prompt": ["b"]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="it is not a result of predict"):
        Index(tmp_path / "other.parquet")

    wide = pl.Series([[0.0] * 512], dtype=pl.Array(pl.Float32, 512))
    pl.DataFrame({"id": ["a"], "embedding": wide}).write_parquet(tmp_path / "wide.parquet")
    with pytest.raises(UserError, match="its vectors are 512 long, not 384: of another model"):
        Index(tmp_path / "wide.parquet")

    long = np.full((2, 384), 3, np.float32)
    with pytest.raises(UserError, match="row 0 has length 58.79, not 1"):
        Index(write_result(tmp_path, vectors=long))
    with pytest.raises(UserError, match="the sentence model '/nowhere', which cannot be loaded"):
        Index(write_result(tmp_path, sentence_model="/nowhere"))


@pytest.mark.parametrize(
    "identifier",
    ["../secret.png", "{folder}/../secret.png", "link.png", "up/secret.png", "a\0b", "x" * 5000],
)
def test_no_image_outside_the_folder_is_read(tmp_path, identifier):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    (images / "up").symlink_to(tmp_path)
    Image.new("RGB", (8, 8)).save(images / "good.png")
    ids = ["good.png", identifier.format(folder=images)]
    x = l2_normalize(np.eye(2, 384, dtype=np.float32))
    index = Index(write_result(tmp_path, vectors=x, ids=ids), images=images)
    assert index.image_path(0) == images / "good.png"
    assert index.image_path(1) is None


# --- a map, and what other programs open ---


def test_the_map_is_the_principal_components():
    x = np.random.default_rng(0).standard_normal((500, 20)).astype(np.float32)
    x[:, 3] *= 5
    x[:, 7] *= 3
    expected = PCA(2, svd_solver="full").fit_transform(x)
    found = principal_components(x)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)
    assert coordinates(x, "pca")[1] == "PCA"
    with pytest.raises(UserError, match="map 'tsne' is not one of"):
        coordinates(x, "tsne")


def test_umap_keeps_two_kinds_of_image_apart():
    pytest.importorskip("umap", reason="umap-learn is not in requirements.txt")
    x = np.random.default_rng(0).standard_normal((60, 20)).astype(np.float32)
    x[:30, 0] += 20
    x[30:, 1] += 20
    places, name = coordinates(l2_normalize(x), "umap")
    assert name.startswith("UMAP") and places.shape == (60, 2) and np.isfinite(places).all()
    same = np.linalg.norm(places[:30] - places[:30].mean(axis=0), axis=1).max()
    apart = np.linalg.norm(places[:30].mean(axis=0) - places[30:].mean(axis=0))
    assert apart > same
    np.testing.assert_array_equal(coordinates(l2_normalize(x), "umap")[0], places)


def exported(result, out, *arguments):
    return export.main([str(result), "--out", str(out), "--map", "pca", *arguments])


def test_a_parquet_export_has_what_a_viewer_asks_for(result, index, tmp_path):
    assert exported(result, tmp_path / "out.parquet", "--neighbors", "2") == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.num_rows == len(PROMPTS)
    assert table["text"].to_pylist() == PROMPTS
    assert all(path.endswith(".png") for path in table["path"].to_pylist())
    np.testing.assert_array_equal(pl.from_arrow(table)["vector"].to_numpy(), index.vectors())

    cosine = index.vectors() @ index.vectors().T
    np.fill_diagonal(cosine, -2)
    for row, neighbors in enumerate(table["neighbors"].to_pylist()):
        expected = np.argsort(-cosine[row])[:2]
        assert neighbors["ids"] == expected.tolist()
        assert neighbors["distances"] == pytest.approx(
            (1 - cosine[row, expected]).tolist(), abs=1e-5
        )


def test_copies_are_neighbors_of_each_other(tmp_path):
    x = np.repeat(l2_normalize(np.eye(2, 384, dtype=np.float32)), 5, axis=0)
    assert (
        exported(write_result(tmp_path, vectors=x), tmp_path / "o.parquet", "--neighbors", "3") == 0
    )
    for row, neighbors in enumerate(pq.read_table(tmp_path / "o.parquet")["neighbors"].to_pylist()):
        assert len(neighbors["ids"]) == 3 and row not in neighbors["ids"]
        assert all(other // 5 == row // 5 for other in neighbors["ids"])


def test_faiss_opens_its_index(result, index, tmp_path):
    assert exported(result, tmp_path / "out.faiss", "--to", "faiss") == 0
    flat = faiss.read_index(str(tmp_path / "out.faiss"))
    query = prompts.encode([FOX], device="cpu")
    _, rows = flat.search(query, 3)
    assert rows[0].tolist() == index.search(FOX, 3)["row"].to_list()
    ids = pl.read_parquet(tmp_path / "out.faiss.ids.parquet")["id"]
    assert ids.to_list() == index.table["id"].to_list()


def test_lancedb_opens_its_folder(result, index, tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="lancedb is not in requirements.txt")
    assert exported(result, tmp_path / "lance", "--to", "lance") == 0
    table = lancedb.connect(str(tmp_path / "lance")).open_table(export.TABLE)
    query = prompts.encode([FOX], device="cpu")[0]
    found = table.search(query).distance_type("cosine").limit(3).to_list()
    assert [row["id"] for row in found] == index.search(FOX, 3)["id"].to_list()


def test_lancedb_opens_the_parquet_export_as_it_is(result, tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="lancedb is not in requirements.txt")
    assert exported(result, tmp_path / "out.parquet") == 0
    content = pq.read_table(tmp_path / "out.parquet")
    table = lancedb.connect(str(tmp_path / "db")).create_table("images", data=content)
    query = prompts.encode([FOX], device="cpu")[0]
    assert table.search(query).limit(1).to_list()[0]["text"] == FOX


def test_embedding_atlas_reads_the_parquet_export(result, tmp_path):
    pytest.importorskip("embedding_atlas", reason="embedding-atlas is not in requirements.txt")
    from embedding_atlas.cli import load_datasets

    assert exported(result, tmp_path / "out.parquet") == 0
    frame = load_datasets([str(tmp_path / "out.parquet")])
    assert {"text", "vector", "neighbors", "x", "y"} <= set(frame.columns)


def test_without_lancedb_its_export_says_so(result, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    assert exported(result, tmp_path / "lance", "--to", "lance") == 2
    assert "--to lance needs the package lancedb" in capsys.readouterr().err
