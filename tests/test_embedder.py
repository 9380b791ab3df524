"""A folder becomes an index: counts that add up, and the same bytes every time."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from puma_edge.decoding import decode
from puma_edge.errors import PumaError, UsageError
from puma_edge.inputs import Batch, Item
from puma_edge.prompts import Modality
from puma_edge.resize import Resizer
from puma_edge.runtimes import files, plan, run, writer
from puma_edge.runtimes.corpus import scan
from puma_edge.runtimes.documents import Quarantined
from puma_edge.runtimes.embedder import Settings, embed_corpus
from puma_edge.runtimes.index import Index
from puma_edge.runtimes.vectors import Storage, shorten
from tests.edge import STAMP, HashEncoder, embed, encoded, fill, mixed, picture, small_spec
from tests.kills import contents


def test_counts_and_files(tmp_path: Path) -> None:
    out = tmp_path / "out" / "index.npy"
    report = embed(mixed(tmp_path / "corpus"), out)
    assert (report.seen, report.embedded, report.quarantined, report.duplicates) == (23, 21, 1, 1)
    vectors = np.load(out)
    assert vectors.dtype == np.float32
    assert vectors.shape == (22, HashEncoder.dimension)
    table = pq.read_table(out.with_suffix(".parquet")).to_pylist()
    assert len(table) == 22
    same = [row for row, entry in enumerate(table) if entry["text"] == "text number 0"]
    assert len(same) == 2
    assert np.array_equal(*vectors[same])
    header = json.loads(out.with_suffix(".json").read_text())
    assert header["seen"] == header["embedded"] + header["quarantined"] + header["duplicates"]
    lines = out.with_name("index.quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["broken.png"]
    assert not out.with_name("index.npy.partial").exists()


def test_rows_are_what_the_encoder_gives_for_each_item_alone(tmp_path: Path) -> None:
    root, out = mixed(tmp_path / "corpus"), tmp_path / "index.npy"
    embed(root, out, Settings(resizer=Resizer.PILLOW))
    index = Index.open(out)
    spec, encoder = small_spec(), HashEncoder()
    for row, record in enumerate(index.records(range(len(index)))):
        images = () if record.modality is Modality.TEXT else (decode(root / record.path),)
        text = None if record.modality is Modality.IMAGE else record.text
        alone = encoder.encode(spec.collate([spec.encode(Item(text, images))]))[0]
        np.testing.assert_allclose(index.vectors[row], alone, atol=1e-6)


def test_same_input_same_bytes(tmp_path: Path, small_windows: None) -> None:
    root = mixed(tmp_path / "corpus")
    embed(root, tmp_path / "a" / "index.npy")
    embed(root, tmp_path / "b" / "index.npy", Settings(feeders=1))
    assert contents(tmp_path / "a" / "index.npy") == contents(tmp_path / "b" / "index.npy")
    embed(root, tmp_path / "a" / "index.npy")
    assert contents(tmp_path / "a" / "index.npy") == contents(tmp_path / "b" / "index.npy")


def test_any_picture_a_folder_holds(tmp_path: Path) -> None:
    grey16 = Image.fromarray((np.arange(1200).reshape(30, 40) * 50).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [picture(number) for number in range(3)]
    good = {f"{mode}.png": encoded(picture(2, mode=mode)) for mode in ("1", "L", "LA", "P", "RGBA")}
    good |= {
        "grey16.png": encoded(grey16),
        "cmyk.jpg": encoded(picture(3, mode="CMYK"), "JPEG"),
        "turned.jpeg": encoded(picture(4, 60, 20), "JPEG", exif=turned),
        "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "pages.tiff": encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "web.webp": encoded(picture(5), "WEBP"),
        "old.bmp": encoded(picture(6), "BMP"),
        "dot.png": encoded(picture(7, 1, 1)),
        "really_a_jpeg.png": encoded(picture(8), "JPEG"),
    }
    bad = {
        "zero.png": b"",
        "short.jpg": encoded(picture(9, 200, 200), "JPEG")[:600],
        "text.png": b"no picture",
        "thin.png": encoded(picture(9, 1, 400)),
    }
    bomb = encoded(Image.new("1", (30000, 6000)))
    root = fill(tmp_path / "corpus", {**good, **bad, "bomb.png": bomb})
    report = embed(root, tmp_path / "index.npy")
    lines = (tmp_path / "index.quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == sorted([*bad, "bomb.png"])
    assert report.embedded == len(good)
    assert report.seen == report.embedded + report.quarantined


PIECES = st.sampled_from([b"", b"one", b"two", b"\xff", encoded(picture(1)), encoded(picture(2))])
FOLDER_NAMES = st.tuples(st.sampled_from("ab"), st.sampled_from([".txt", ".png", ".jsonl", ".md"]))


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(FOLDER_NAMES.map("".join), PIECES, max_size=8))
def test_counts_add_up_for_any_folder(
    tmp_path_factory: pytest.TempPathFactory, folder: dict[str, bytes]
) -> None:
    work = tmp_path_factory.mktemp("any")
    root = fill(work / "corpus", folder)
    corpus = scan(root)
    try:
        report = embed(root, work / "index.npy")
    except PumaError:
        assert not (work / "index.npy").exists()
        return
    assert report.seen == corpus.seen == report.embedded + report.quarantined + report.duplicates
    index = Index.open(work / "index.npy")
    assert len(index) == report.embedded + report.duplicates
    lines = work / "index.quarantine.jsonl"
    count = len(lines.read_text().splitlines()) if lines.exists() else 0
    assert count == report.quarantined
    names = {entry.id for entry in index.records(range(len(index)))}
    assert names <= {document.id for document in corpus.documents}


def test_a_second_run_on_the_same_output_is_refused(tmp_path: Path) -> None:
    root, out = mixed(tmp_path / "corpus"), tmp_path / "index.npy"
    lock = files.locked(tmp_path / "index.npy.partial", out)
    with lock, pytest.raises(PumaError, match="another run is writing"):
        embed(root, out)
    embed(root, out)
    assert len(Index.open(out)) == 22


def test_what_cannot_work_is_said_at_once(tmp_path: Path) -> None:
    root, out = mixed(tmp_path / "corpus"), tmp_path / "index.npy"
    with pytest.raises(UsageError, match="does not end in"):
        embed(root, tmp_path / "index")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        embed(root, tmp_path / "folder.npy")
    with pytest.raises(UsageError, match="the model has 24"):
        embed(root, out, Settings(dimension=25))
    with pytest.raises(PumaError, match=r"found: 1 \.pdf"):
        embed(fill(tmp_path / "empty", {"a.pdf": b"x"}), out)
    (tmp_path / "file").write_text("x")
    with pytest.raises(PumaError, match="cannot write"):
        embed(root, tmp_path / "file" / "index.npy")
    with pytest.raises(PumaError, match=r"none of the 2 items.*a\.png"):
        embed(fill(tmp_path / "bad", {"a.png": b"", "b.txt": b"\xff"}), out)
    assert not out.exists()


def test_the_quarantine_goes_when_the_reason_has_gone(tmp_path: Path) -> None:
    root, out = mixed(tmp_path / "corpus"), tmp_path / "index.npy"
    embed(root, out)
    (root / "broken.png").unlink()
    embed(root, out)
    assert not (tmp_path / "index.quarantine.jsonl").exists()


def test_a_copy_of_what_cannot_be_read_says_which_was_tried(tmp_path: Path) -> None:
    files = {"a.txt": "same", "b.txt": "same", "c.txt": "other"}
    root, out = fill(tmp_path / "corpus", files), tmp_path / "index.npy"
    corpus = scan(root)
    (root / "a.txt").unlink()
    embed_corpus(corpus, out, small_spec(), HashEncoder(), STAMP)
    lines = (tmp_path / "index.quarantine.jsonl").read_text().splitlines()
    reasons = {entry["path"]: entry["reason"] for entry in map(json.loads, lines)}
    assert reasons["a.txt"].startswith("cannot be read (No such file")
    assert reasons["b.txt"] == f"equal to a.txt, which was tried: {reasons['a.txt']}"


def test_no_reason_keeps_a_run_from_ending(tmp_path: Path) -> None:
    root, out = fill(tmp_path / "corpus", {"a.txt": "short"}), tmp_path / "index.npy"
    (root / "l.jsonl").write_text('{"image": "\\ud800.png"}')
    assert embed(root, out).quarantined == 1
    corpus = replace(scan(root), quarantine=(Quarantined("b.png", "it says \ud800"),))
    assert embed_corpus(corpus, out, small_spec(), HashEncoder(), STAMP).quarantined == 1
    (line,) = (tmp_path / "index.quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == "b.png"


def test_embeddings_that_are_no_numbers_are_quarantined(tmp_path: Path) -> None:
    class Overflows(HashEncoder):
        def encode(self, batch: Batch) -> np.ndarray:
            result = super().encode(batch)
            lengths = batch.attention_mask.sum(1)
            result[lengths > lengths.min()] = np.nan
            return result

    root = fill(tmp_path / "corpus", {"a.txt": "short", "b.txt": "long " * 40})
    report = embed_corpus(scan(root), tmp_path / "i.npy", small_spec(), Overflows(), STAMP)
    assert (report.embedded, report.quarantined) == (1, 1)
    assert "no finite embedding" in (tmp_path / "i.quarantine.jsonl").read_text()


def test_an_encoder_of_another_shape_is_an_error(tmp_path: Path) -> None:
    class Wide(HashEncoder):
        dimension = 30

    root = fill(tmp_path / "corpus", {"a.txt": "short"})
    with pytest.raises(PumaError, match="expected"):
        embed_corpus(scan(root), tmp_path / "i.npy", small_spec(), Wide(), STAMP)


def test_float16_and_short_vectors(tmp_path: Path) -> None:
    root = mixed(tmp_path / "corpus")
    embed(root, tmp_path / "full.npy")
    embed(root, tmp_path / "half.npy", Settings(storage=Storage.FLOAT16, dimension=8))
    full, half = np.load(tmp_path / "full.npy"), np.load(tmp_path / "half.npy")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, shorten(full, 8), atol=1e-3)
    assert Index.open(tmp_path / "half.npy").header.dtype == "float16"


def test_copies_far_from_their_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_BLOCK", 3)
    names = {f"{n:02}.txt": f"text {n % 4}" for n in range(20)}
    report = embed(fill(tmp_path / "corpus", names), tmp_path / "i.npy")
    assert (report.embedded, report.duplicates) == (4, 16)
    vectors = np.load(tmp_path / "i.npy")
    assert np.array_equal(vectors, np.tile(vectors[:4], (5, 1)))


def test_memory_holds_two_windows_at_most(tmp_path: Path, small_windows: None) -> None:
    """The feeder is never more than one window ahead of the encoder."""
    root = fill(tmp_path / "corpus", {f"{n:03}.txt": f"text {n}" for n in range(60)})
    prepared: list[str] = []
    gaps: list[int] = []
    real = run.feed.__globals__["prepare"]

    def prepare(*arguments: object) -> object:
        prepared.append("x")
        return real(*arguments)

    class Watches(HashEncoder):
        def encode(self, batch: Batch) -> np.ndarray:
            time.sleep(0.01)
            gaps.append(len(prepared) - sum(self.batches))
            return super().encode(batch)

    run.feed.__globals__["prepare"] = prepare
    try:
        embed_corpus(scan(root), tmp_path / "i.npy", small_spec(), Watches(), STAMP)
    finally:
        run.feed.__globals__["prepare"] = real
    assert max(gaps) <= 2 * plan.TEXT_WINDOW
