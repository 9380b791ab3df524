"""Counts that add up, the same bytes every time, and nothing lost to a kill or a full disk."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from puma_edge.errors import PumaError, UsageError
from puma_edge.images import PixelLimits, decode
from puma_edge.inputs import Batch, Item
from puma_edge.prompts import Modality
from puma_edge.resize import Resizer
from puma_edge.runtimes import files, plan, run, writer
from puma_edge.runtimes.corpus import scan
from puma_edge.runtimes.documents import Document
from puma_edge.runtimes.embedder import Progress, Settings, Stamp, Start, Watch, embed_corpus
from puma_edge.runtimes.index import Index
from puma_edge.runtimes.plan import Budget, Cost, batches, windows
from puma_edge.runtimes.vectors import Storage, shorten
from tests.checkout import run_python
from tests.edge import STAMP, HashEncoder, embed, encoded, fill, mixed, picture, small_spec
from tests.kills import contents


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "TEXT_WINDOW", 5)
    monkeypatch.setattr(plan, "IMAGE_WINDOW", 3)


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


class Dies(HashEncoder):
    """An encoder whose power goes at some batch."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__()
        self.after, self.error = after, error

    def encode(self, batch: Batch) -> np.ndarray:
        if len(self.batches) == self.after:
            raise self.error
        return super().encode(batch)


def test_ctrl_c_keeps_what_is_done(tmp_path: Path, small_windows: None) -> None:
    root, out = mixed(tmp_path / "corpus"), tmp_path / "index.npy"
    embed(root, tmp_path / "whole" / "index.npy")
    dies = Dies(3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(scan(root), out, small_spec(), dies, STAMP)
    assert not out.exists()
    seen: list[Progress] = []
    encoder = HashEncoder()
    report = embed_corpus(
        scan(root), out, small_spec(), encoder, STAMP, watch=Watch(progress=seen.append)
    )
    assert report.resumed == sum(dies.batches) > 0
    assert sum(encoder.batches) == report.embedded - report.resumed
    assert [entry.done for entry in seen] == sorted(entry.done for entry in seen)
    assert (seen[-1].done, seen[-1].done_bytes) == (seen[-1].total, seen[-1].total_bytes)
    assert seen[-1].kept == seen[-1].total
    assert contents(out) == contents(tmp_path / "whole" / "index.npy")


@pytest.mark.parametrize("stops", [(1,), (3,), (1, 1, 2, 1), (5, 2)])
def test_ctrl_c_keeps_the_batches_of_the_open_window(tmp_path: Path, stops: tuple[int]) -> None:
    """All 32 texts are one window of eight batches; each run adds some and is stopped."""
    root, out = mixed(tmp_path / "corpus", texts=30), tmp_path / "index.npy"
    small = Settings(budget=Budget(text_tokens=100, least=0))
    embed(root, tmp_path / "whole" / "index.npy", small)
    kept = 0
    for stop in stops:
        seen: list[Progress] = []
        dies = Dies(stop, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            embed_corpus(
                scan(root), out, small_spec(), dies, STAMP, small, Watch(progress=seen.append)
            )
        kept += sum(dies.batches)
        assert seen[-1].kept == seen[-1].done == kept
    told: list[Start] = []
    encoder = HashEncoder()
    report = embed_corpus(
        scan(root), out, small_spec(), encoder, STAMP, small, Watch(begin=told.append)
    )
    assert report.resumed == told[0].resumed == kept
    assert sum(encoder.batches) == report.embedded - kept
    assert contents(out) == contents(tmp_path / "whole" / "index.npy")


@pytest.mark.parametrize("name", ["*.begun.npy", "*.begun.json"])
def test_a_damaged_begun_window_is_computed_again(tmp_path: Path, name: str) -> None:
    root, out = mixed(tmp_path / "corpus", texts=30), tmp_path / "index.npy"
    small = Settings(budget=Budget(text_tokens=100, least=0))
    embed(root, tmp_path / "whole" / "index.npy", small)
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(scan(root), out, small_spec(), Dies(4, KeyboardInterrupt()), STAMP, small)
    (path,) = out.with_name("index.npy.partial").glob(name)
    path.write_bytes(path.read_bytes()[:-9])
    assert embed(root, out, small).resumed == 0
    assert contents(out) == contents(tmp_path / "whole" / "index.npy")


def test_a_run_says_first_what_it_will_do(tmp_path: Path, small_windows: None) -> None:
    root, out = mixed(tmp_path / "corpus", texts=90), tmp_path / "index.npy"
    told: list[Start | Progress] = []
    watch = Watch(told.append, told.append)
    dies = Dies(20, KeyboardInterrupt())  # ten of the batches are those of the estimate
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(scan(root), out, small_spec(), dies, STAMP, watch=watch)
    start, stopped = told[0], told[-1]
    assert isinstance(start, Start)
    assert isinstance(stopped, Progress)
    assert (start.items, start.resumed) == (stopped.total, 0)
    assert start.size == stopped.total_bytes
    assert start.seconds is not None
    assert 0 < start.seconds < 60
    told.clear()
    report = embed_corpus(scan(root), out, small_spec(), HashEncoder(), STAMP, watch=watch)
    again = next(entry for entry in told if isinstance(entry, Start))
    assert report.resumed == again.resumed > 0
    assert again.items == start.items - stopped.kept


def test_work_done_is_used_only_for_the_same_model(tmp_path: Path, small_windows: None) -> None:
    root, out = mixed(tmp_path / "corpus"), tmp_path / "index.npy"
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(scan(root), out, small_spec(), Dies(3, KeyboardInterrupt()), STAMP)
    assert embed(root, out, stamp=Stamp("model-b", "fp32")).resumed == 0


def test_work_done_outlives_a_change_in_the_corpus(tmp_path: Path, small_windows: None) -> None:
    root, out = mixed(tmp_path / "corpus", texts=60), tmp_path / "index.npy"
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(scan(root), out, small_spec(), Dies(14, KeyboardInterrupt()), STAMP)
    (root / "texts" / "040.txt").write_text("something else")
    report = embed(root, out)
    assert report.resumed > 20
    embed(root, tmp_path / "whole" / "index.npy")
    assert contents(out) == contents(tmp_path / "whole" / "index.npy")


def test_a_damaged_shard_is_computed_again(tmp_path: Path, small_windows: None) -> None:
    root, out = mixed(tmp_path / "corpus"), tmp_path / "index.npy"
    embed(root, tmp_path / "whole" / "index.npy")
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(scan(root), out, small_spec(), Dies(3, KeyboardInterrupt()), STAMP)
    first, second, *_ = sorted((tmp_path / "index.npy.partial").glob("*.npy"))
    first.write_bytes(first.read_bytes()[:90])
    second.with_suffix(".json").write_text("{")
    embed(root, out)
    assert contents(out) == contents(tmp_path / "whole" / "index.npy")


@pytest.mark.parametrize("kind", [[], ["--update"]], ids=["whole", "update"])
@pytest.mark.parametrize(
    "kills", [pytest.param("6", id="few"), pytest.param("100", id="many", marks=pytest.mark.long)]
)
def test_kills_and_full_disks_lose_nothing(kind: list[str], kills: str) -> None:
    # In memory where that can be: what a kill leaves does not depend on the disk, syncing does.
    fast = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=fast if os.access(fast, os.W_OK) else None) as folder:
        said = run_python(
            *("-m", "tests.kills", folder, "--kills", kills, *kind),
            *("--limits", "300", "2000", "5500", "1000000"),
            cwd=Path(__file__).parents[1],
        )
    assert "full: [3, 3, 3, 0]" in said


@pytest.mark.parametrize("moved", range(5))
def test_a_kill_between_renames_leaves_one_whole_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    out = tmp_path / "index.npy"
    embed(fill(tmp_path / "old", {"a.txt": "old"}), out)
    old = contents(out)
    root = mixed(tmp_path / "corpus")
    real, calls = os.replace, [0]

    def replace(source: Path, target: Path) -> None:
        if "ready" in str(target) or "ready" in str(source):
            calls[0] += 1
            if calls[0] == moved + 1:
                raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(writer.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        embed(root, out)
    monkeypatch.undo()
    if moved == 0:
        assert contents(out) == old
        assert len(Index.open(out)) == 1
    else:
        assert len(Index.open(out)) == 22
        assert len(Index.open(out).records([0, 21])) == 2
    embed(root, out)
    assert len(Index.open(out)) == 22


@pytest.mark.parametrize("place", ["write_array", "write_bytes", "_write_table", "_write_matrix"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_stops_cleanly_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    out = tmp_path / "index.npy"
    embed(fill(tmp_path / "old", {"a.txt": "old"}), out)
    before = contents(out)
    root = mixed(tmp_path / "corpus")

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    module = writer if place.startswith("_") else sys.modules["puma_edge.runtimes.shards"]
    monkeypatch.setattr(module, place, full)
    with pytest.raises(PumaError, match="before is kept") as caught:
        embed(root, out)
    assert "\n" not in str(caught.value)
    assert ("no space left" in str(caught.value)) == (number == errno.ENOSPC)
    assert contents(out) == before
    monkeypatch.undo()
    report = embed(root, out)
    assert report.resumed == (report.embedded if module is writer else 0)


def test_a_truly_full_file_is_an_oserror_with_a_number(tmp_path: Path) -> None:
    work = tmp_path / "a.npy.tmp"
    work.symlink_to("/dev/full")
    with pytest.raises(PumaError, match="no space left"), files.disk_errors(tmp_path):
        files.write_array(tmp_path / "a.npy", np.ones((4, 4), np.float32))


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


def document(number: int, modality: Modality) -> Document:
    name = f"{number:032x}"
    return Document(name, name, name, modality, f"{(number * 2654435761) % 2**32:08x}{number}", 1)


def test_windows_hold_every_content_once() -> None:
    documents = [document(n % 4000, Modality.TEXT) for n in range(5000)]
    documents += [document(n, Modality.IMAGE) for n in range(5000, 5500)]
    found = windows(documents, PixelLimits())
    flat = [item for window in found for item in window]
    assert flat == sorted(flat)
    assert len(flat) == 4500
    for window in found:
        assert len({documents[item].modality for item in window}) == 1
        assert len(window) <= plan.window_size(documents[window[0]].modality, PixelLimits())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 500), st.sampled_from([0, 4, 16, 1200])), max_size=80),
)
def test_batches_hold_every_item_once_within_the_budget(sizes: list[tuple[int, int]]) -> None:
    costs = [Cost(*size) for size in sizes]
    budget = Budget()
    found = batches(costs, budget)
    assert sorted(item for batch in found for item in batch) == list(range(len(costs)))
    for batch in found:
        tokens = max(costs[item].tokens for item in batch)
        patches = max(costs[item].patches for item in batch)
        assert len(batch) == 1 or plan._fits(len(batch), tokens, patches, budget)


@pytest.mark.parametrize(("count", "most"), [(plan.TEXT_WINDOW, 1.05), (300, 1.1), (96, 1.2)])
def test_padding_stays_under_five_percent(count: int, most: float) -> None:
    lengths = np.random.default_rng(0).lognormal(4, 0.8, count).clip(20, 480).astype(int)
    found = batches([Cost(int(length)) for length in lengths], Budget())
    padded = sum(len(batch) * max(lengths[item] for item in batch) for batch in found)
    assert padded < most * lengths.sum()


def test_pictures_of_two_sizes_share_no_batch() -> None:
    costs = [Cost(300, 1200 - 4 * (n % 2)) for n in range(20)] + [Cost(121, 484)] * 20
    assert all(
        len({costs[item].patches > 500 for item in batch}) == 1
        for batch in batches(costs, Budget())
    )


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
