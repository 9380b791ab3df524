"""A run that is stopped, killed or out of room: nothing is lost, and the next one goes on."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from puma_edge.errors import PumaError
from puma_edge.inputs import Batch
from puma_edge.runtimes import files, writer
from puma_edge.runtimes.corpus import scan
from puma_edge.runtimes.embedder import Progress, Settings, Stamp, Start, Watch, embed_corpus
from puma_edge.runtimes.index import Index
from puma_edge.runtimes.plan import Budget
from tests.checkout import run_python
from tests.edge import STAMP, HashEncoder, embed, fill, mixed, small_spec
from tests.kills import contents


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
