"""Runs of embed that die: at any file operation, at any moment, and on a disk without room.

`python -m tests.kills FOLDER --kills 100` kills a hundred runs and compares what the last of each
chain wrote with what an unbroken run writes, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from puma_edge.errors import PumaError
from puma_edge.runtimes import plan
from puma_edge.runtimes.corpus import scan
from puma_edge.runtimes.embedder import Settings, embed_corpus
from tests.edge import STAMP, HashEncoder, fill, mixed, small_spec

NAMES = ("index.npy", "index.parquet", "index.json", "index.quarantine.jsonl")
# What the file system is asked to change.
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
FULL = 3  # exit code of a child whose disk was full


def contents(out: Path) -> dict[str, bytes]:
    """Read the files of an index."""
    there = (out.with_name(name) for name in NAMES)
    return {path.name: path.read_bytes() for path in there if path.exists()}


def child(act: Callable[[], None]) -> int:
    """Run `act` in a process of its own; give its number."""
    number = os.fork()
    if number == 0:
        try:
            act()
        except PumaError as error:
            os._exit(FULL if "no space left" in str(error) else 1)
        os._exit(0)
    return number


def ended(number: int) -> int:
    """Wait for a child; what it died of, as `subprocess` tells it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def embed(corpus: Path, out: Path, update: bool = False) -> None:
    """Embed with the test encoder."""
    embed_corpus(scan(corpus), out, small_spec(), HashEncoder(), STAMP, Settings(update=update))


def die_at(step: int, folder: Path) -> None:
    """Kill this process at the n-th change it asks for in a folder."""
    left, place = [step], os.fspath(folder)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS and str(arguments[0]).startswith(place):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def count_steps(act: Callable[[], None], folder: Path) -> int:
    """Count the changes that `act` asks for in a folder; it is done in a child."""
    seen = folder.with_name("steps")
    seen.write_bytes(b"")

    def counted() -> None:
        place = os.fspath(folder)
        handle = os.open(seen, os.O_WRONLY | os.O_APPEND)

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event in EVENTS and str(arguments[0]).startswith(place):
                os.write(handle, b".")

        sys.addaudithook(hook)
        act()

    assert ended(child(counted)) == 0
    return seen.stat().st_size


class Chains:
    """Chains of runs on one corpus, each killed but the last."""

    def __init__(self, folder: Path, update: bool) -> None:
        """Make the corpus, and with `update` an index of a part of it that is gone on from."""
        self.update = update
        self.corpus = mixed(folder / "corpus", texts=60, images=8)
        self.before = folder / "before"
        self.before.mkdir()
        if update:
            old = mixed(folder / "old", texts=30, images=4)
            fill(old, {"gone.txt": "no more", "texts/003.txt": "was something else"})
            embed(old, self.before / "index.npy")
        self.folder = folder / "work"
        self.out = self.folder / "index.npy"
        self.renew()
        began = time.monotonic()
        self.steps = count_steps(self.run, self.folder)
        self.seconds = time.monotonic() - began
        self.whole = contents(self.out)
        assert len(self.whole) == len(NAMES)

    def renew(self) -> None:
        """Begin again with the index that was there before."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.before, self.folder)

    def run(self) -> None:
        """Embed, or update."""
        embed(self.corpus, self.out, self.update)

    def compare(self) -> None:
        """Check what a run that came to its end wrote."""
        assert contents(self.out) == self.whole
        assert not (self.folder / "index.npy.partial").exists()
        self.renew()

    def kill(self, kills: int, chance: random.Random) -> int:
        """Kill so many runs; give how many chains came to their end."""
        killed = chains = 0
        while killed < kills:
            if killed % 2:
                step = chance.randint(1, self.steps)

                def act(step: int = step) -> None:
                    die_at(step, self.folder)
                    self.run()

                number = child(act)
            else:
                number = child(self.run)
                time.sleep(chance.uniform(0, self.seconds))
                os.kill(number, signal.SIGKILL)
            if ended(number) == -signal.SIGKILL:
                killed += 1
                if chance.random() < 0.5:
                    continue
                assert ended(child(self.run)) == 0
            chains += 1
            self.compare()
        return chains

    def fill_disk(self, most: int) -> int:
        """Run where no file may be longer than so many bytes, then where it may; the first's end.

        The system refuses the very write that goes over the limit.
        """

        def act() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            self.run()

        before = contents(self.out)
        code = ended(child(act))
        if code:
            assert contents(self.out) == before
            assert ended(child(self.run)) == 0
        self.compare()
        return code


def main() -> None:
    """Kill, and say what was seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="an empty folder to work in")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--limits", type=int, nargs="*", default=[], help="bytes a file may have")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--update", action="store_true", help="update an index instead")
    given = parser.parse_args()
    plan.TEXT_WINDOW, plan.IMAGE_WINDOW = 5, 3
    chains = Chains(given.folder, given.update)
    full = [chains.fill_disk(most) for most in given.limits]
    done = chains.kill(given.kills, random.Random(given.seed))
    print(f"{given.kills} kills over {chains.steps} steps, {done} chains compared, full: {full}")


if __name__ == "__main__":
    main()
