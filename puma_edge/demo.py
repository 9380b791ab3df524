"""The whole path on the sample, as the commands a person would type."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from puma_edge.errors import PumaError, UsageError

QUERIES = ("fox", "red heart", "Regenschirm", "voiture rouge", "crying cat", "snow mountain")
LINES = (
    ("sample", "corpus/"),
    ("train",),
    ("export", "--int8"),
    ("embed", "corpus/", "--out", "index.npy"),
    ("search", "index.npy", *QUERIES, "--top", "5", "--sheet", "hits.png"),
    ("bench", "--rounds", "2"),
)


def run_demo(folder: Path) -> None:
    """Run the lines in `folder`, printing each before it runs.

    Raises:
        UsageError: the folder holds something already.
        PumaError: a line failed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; give a new folder with --out, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    for line in LINES:
        print(f"\n$ puma-edge {shlex.join(line)}", flush=True)
        done = subprocess.run([sys.executable, "-m", "puma_edge", *line], cwd=folder, check=False)
        if done.returncode:
            raise PumaError(f"the demo stopped: puma-edge {line[0]} left with {done.returncode}")
    print(f"\nThe hits are drawn in {folder / 'hits.png'}, the timings in {folder / 'bench.png'}.")
