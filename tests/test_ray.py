"""`embed --engine ray`: the same bytes as on one machine, whatever ends on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from puma_edge.errors import PumaError, UsageError
from puma_edge.inputs import Batch
from puma_edge.prompts import Modality
from puma_edge.resize import Resizer
from puma_edge.runtimes.corpus import scan
from puma_edge.runtimes.documents import Document
from puma_edge.runtimes.embedder import Report, Stamp, embed_corpus
from puma_edge.runtimes.fleet import Recipe
from puma_edge.runtimes.plan import Budget
from puma_edge.runtimes.ray_fleet import RayFleet, RaySettings, _share, open_fleet
from puma_edge.runtimes.ray_worker import Member, Worker
from puma_edge.runtimes.shards import Shard
from tests.commands import puma
from tests.edge import STAMP, HashEncoder, embed, mixed, small_spec
from tests.kills import contents


class Slow(HashEncoder):
    """Takes its time over each batch."""

    def encode(self, batch: Batch) -> NDArray[np.float32]:
        time.sleep(0.1)
        return super().encode(batch)


class Dies(HashEncoder):
    """Ends its process, the first time that it is asked with this file there."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self._marker = marker

    def encode(self, batch: Batch) -> NDArray[np.float32]:
        if self._marker.exists():
            self._marker.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(batch)


class Refuses(HashEncoder):
    """Cannot."""

    def encode(self, batch: Batch) -> NDArray[np.float32]:
        raise PumaError("the engine lost its device")


class Marks(HashEncoder):
    """Leaves a file for each batch."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def encode(self, batch: Batch) -> NDArray[np.float32]:
        (self._folder / f"{time.monotonic_ns()}-{os.getpid()}").touch()
        return super().encode(batch)


@dataclass(frozen=True)
class Opener:
    """Opens one of them."""

    kind: str = "plain"
    marker: Path = Path()

    def __call__(self, threads: int) -> Member:
        made: dict[str, HashEncoder] = {"plain": HashEncoder(), "slow": Slow()}
        made |= {"dies": Dies(self.marker), "refuses": Refuses(), "marks": Marks(self.marker)}
        model = f"model-{os.getpid()}" if self.kind == "differs" else STAMP.model_id
        return Member(small_spec(), made.get(self.kind, HashEncoder()), Stamp(model, "fp32"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A real cluster of one node with two CPUs, on this machine; its address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield made.address
    made.shutdown()


def run(root: Path, out: Path, opener: Opener, address: str) -> Report:
    """Embed on a cluster."""
    with open_fleet(opener, RaySettings(address, actors=2)) as fleet:
        assert (fleet.size, fleet.threads) == (2, 1)
        return embed_corpus(scan(root), out, small_spec(), fleet, STAMP)


@pytest.mark.extra
def test_the_same_bytes_as_on_one_machine(
    tmp_path: Path, small_windows: None, cluster: str
) -> None:
    root = mixed(tmp_path / "corpus", texts=40, images=8)
    embed(root, tmp_path / "one" / "index.npy")
    report = run(root, tmp_path / "many" / "index.npy", Opener(), cluster)
    assert contents(tmp_path / "many" / "index.npy") == contents(tmp_path / "one" / "index.npy")
    assert report.seen == report.embedded + report.quarantined + report.duplicates
    assert report.quarantined == 1


@pytest.mark.extra
def test_an_actor_that_dies_is_replaced(tmp_path: Path, small_windows: None, cluster: str) -> None:
    root, marker = mixed(tmp_path / "corpus", texts=20), tmp_path / "marker"
    embed(root, tmp_path / "one" / "index.npy")
    marker.touch()
    run(root, tmp_path / "many" / "index.npy", Opener("dies", marker), cluster)
    assert not marker.exists()
    assert contents(tmp_path / "many" / "index.npy") == contents(tmp_path / "one" / "index.npy")


RUN = """
import sys
from pathlib import Path
from puma_edge.prompts import Modality
from puma_edge.resize import Resizer
from puma_edge.runtimes import plan
from tests import test_ray

plan.TEXT_WINDOW, plan.IMAGE_WINDOW = 5, 3
test_ray.run(Path(sys.argv[1]), Path(sys.argv[2]), test_ray.Opener("slow"), sys.argv[3])
"""


@pytest.mark.extra
def test_a_killed_run_goes_on_without_ray(
    tmp_path: Path, small_windows: None, cluster: str
) -> None:
    """Its shards are those of an ordinary run, which can take them up."""
    root, out = mixed(tmp_path / "corpus", texts=200), tmp_path / "many" / "index.npy"
    embed(root, tmp_path / "one" / "index.npy")
    line = [sys.executable, "-c", RUN, str(root), str(out), cluster]
    with subprocess.Popen(line, cwd=Path(__file__).parents[1]) as process:
        until = time.monotonic() + 300
        while len(list(out.parent.glob("*.partial/*.npy"))) < 4 and time.monotonic() < until:
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    report = embed(root, out)
    assert 5 <= report.resumed < report.embedded
    assert contents(out) == contents(tmp_path / "one" / "index.npy")


@pytest.mark.extra
def test_what_goes_wrong_in_an_actor_is_one_line(tmp_path: Path, cluster: str) -> None:
    root, out = mixed(tmp_path / "corpus"), tmp_path / "index.npy"
    with pytest.raises(PumaError, match=r"^the engine lost its device$"):
        run(root, out, Opener("refuses"), cluster)
    with pytest.raises(PumaError, match="the machines embed differently"):
        run(root, out, Opener("differs"), cluster)
    assert not out.exists()
    with pytest.raises(UsageError, match=r"3 actors of 1 threads asked for.* has 2 CPUs"):
        RayFleet(Opener(), RaySettings(cluster, actors=3))


@pytest.mark.extra
def test_two_windows_an_actor_are_under_way_and_no_more(tmp_path: Path, cluster: str) -> None:
    """Whatever the corpus holds: memory must not grow with it while the disk is slow."""
    root, seen = mixed(tmp_path / "corpus", texts=60), tmp_path / "seen"
    seen.mkdir()
    documents = [one for one in scan(root).documents if one.modality is Modality.TEXT]
    recipe = Recipe(Budget(), 1, Resizer.PILLOW)
    with open_fleet(Opener("marks", seen), RaySettings(cluster, actors=2)) as fleet:
        coming = fleet.shards(root, [[one] for one in documents], recipe)
        next(coming)
        time.sleep(3)
        # Two of each of two actors at first, and one more for the first that was done.
        assert len(list(seen.iterdir())) <= 5
        rest = sorted(place for place, _ in coming)
        assert len(rest) == len(documents) - 1
    assert len(list(seen.iterdir())) == len(documents)


@pytest.mark.extra
def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PumaError, match=r"no Ray cluster at 127\.0\.0\.1:1 .*ray start --head"):
        RayFleet(Opener(), RaySettings(address="127.0.0.1:1"))


@pytest.mark.extra
def test_the_command_writes_what_it_writes_without_ray(tmp_path: Path, sample_bundle: Path) -> None:
    mixed(tmp_path / "corpus")
    for name, more in (("one", ()), ("many", ("--engine", "ray", "--threads", "1"))):
        line = ("embed", "corpus", "--bundle", str(sample_bundle), "--out", f"{name}/index.npy")
        done = puma(*line, *more, cwd=tmp_path)
        assert done.returncode == 3, done.stderr  # one picture is broken
    assert contents(tmp_path / "many" / "index.npy") == contents(tmp_path / "one" / "index.npy")


class Backwards(HashEncoder):
    """A fleet of one worker without Ray, which does the last window first."""

    size = 1

    def shards(
        self, root: Path, todo: Sequence[Sequence[Document]], recipe: Recipe
    ) -> Generator[tuple[int, Shard], None, None]:
        worker = Worker(Opener(), 1)
        for place in reversed(range(len(todo))):
            yield place, worker.shard(str(root), todo[place], recipe)


def test_shards_of_workers_in_any_order_give_the_same_bytes(
    tmp_path: Path, small_windows: None
) -> None:
    root = mixed(tmp_path / "corpus", texts=20)
    embed(root, tmp_path / "one" / "index.npy")
    out = tmp_path / "many" / "index.npy"
    report = embed_corpus(scan(root), out, small_spec(), Backwards(), STAMP)
    assert contents(out) == contents(tmp_path / "one" / "index.npy")
    assert report.seen == report.embedded + report.quarantined + report.duplicates


def test_shares() -> None:
    assert _share([2], RaySettings()) == (1, 2)
    assert _share([2, 8, 0], RaySettings()) == (2, 2)
    assert _share([8, 8], RaySettings(actors=4)) == (4, 4)
    assert _share([4], RaySettings(threads=1)) == (1, 1)
    with pytest.raises(UsageError, match=r"3 actors of 2 threads asked for.* has 4 CPUs"):
        _share([4], RaySettings(actors=3, threads=2))
    with pytest.raises(PumaError, match="no CPU to give"):
        _share([0], RaySettings())


def test_no_actor_is_too_few() -> None:
    with pytest.raises(UsageError, match="--actors 0: give 1 or more"):
        RayFleet(Opener(), RaySettings(actors=0))


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PumaError, match=r"pip install 'puma-edge\[ray\]'"):
        RayFleet(Opener(), RaySettings())
