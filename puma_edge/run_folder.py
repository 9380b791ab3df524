"""A training run on disk: its settings, what is done of it, and how an interrupted one goes on.

runs/<date>/settings.json        what was asked
recall.json          recall measured so far
stage1/, merged1/    adapters and their checkpoints; the model after the stage
stage2/, merged/
metrics.json         the report: a run is finished once it is there
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from puma_edge.config import TrainConfig
from puma_edge.errors import PumaError, UsageError
from puma_edge.ranks import rank, ranks
from puma_edge.runtimes.files import disk_errors, locked, replacing

RUNS = Path("runs")
SETTINGS, RECALL, METRICS = "settings.json", "recall.json", "metrics.json"


@dataclass(frozen=True)
class Run:
    """One run's folder.

    Attributes:
        folder: where it lies.
        resumed: whether an earlier process has worked on it.
    """

    folder: Path
    resumed: bool = False

    def recall(self) -> dict[str, dict[int, float]]:
        """What was measured before: "teacher", "cut", "student" -> task -> recall."""
        path = self.folder / RECALL
        if not path.is_file():
            return {}
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: {int(task): value for task, value in row.items()} for name, row in rows.items()
        }

    def keep_recall(self, name: str, recall: dict[int, float]) -> None:
        """Remember a measurement."""
        self.write(RECALL, {**self.recall(), name: recall})

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, whole or not at all; the first rank does it for all."""
        if rank() == 0:
            with disk_errors(self.folder), replacing(self.folder / name) as file:
                file.write((json.dumps(content, indent=2) + "\n").encode())


@contextmanager
def open_run(config: TrainConfig) -> Iterator[Run]:
    """The run these settings ask for: an unfinished one with the same settings, or a new one.

    It is locked until the block ends.

    Raises:
        PumaError: `--out` holds a finished run, one of other settings, or one at work right now.
        UsageError: several ranks, and no `--out` that names the run for all of them.
    """
    if ranks() > 1 and not config.out:
        raise UsageError(f"{ranks()} ranks train together: name their common run with --out")
    asked = asdict(replace(config, out=""))
    settings = _flat(asked)
    folder = Path(config.out) if config.out else _unfinished(settings) or _new()
    before = _settings(folder)
    if (folder / METRICS).exists():
        raise PumaError(f"{folder} holds a finished run; choose another --out")
    if before is not None and before != settings:
        raise PumaError(
            f"{folder} holds an unfinished run of other settings "
            f"({_difference(before, settings)}); give those again to go on with it, or choose "
            "another --out"
        )
    run = Run(folder, resumed=before is not None)
    if rank():
        yield run
        return
    with locked(folder, folder):
        run.write(SETTINGS, asked)
        yield run
    (folder / "lock").unlink(missing_ok=True)


def newest_run(runs: Path = RUNS) -> Path:
    """The newest finished run.

    Raises:
        PumaError: there is none.
    """
    finished = [path.parent for path in runs.glob(f"*/{METRICS}")]
    if not finished:
        raise PumaError(f"no finished run in {runs}/; train one first: puma-edge train")
    return max(finished, key=lambda run: (run / METRICS).stat().st_mtime)


def _new() -> Path:
    return RUNS / datetime.now(timezone.utc).strftime("%Y-%m-%d_%H%M%S")


def _unfinished(settings: dict[str, Any]) -> Path | None:
    """The newest unfinished run with these settings that no other process works on."""
    for path in sorted(RUNS.glob(f"*/{SETTINGS}"), reverse=True):
        folder = path.parent
        if (folder / METRICS).exists() or _settings(folder) != settings:
            continue
        try:
            with locked(folder, folder):
                return folder
        except PumaError:
            continue
    return None


def _settings(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        # What the version that began the run did not know yet is what it is by default.
        return _flat(asdict(TrainConfig())) | _flat(found)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, AttributeError):
        raise PumaError(f"{folder / SETTINGS} is damaged; choose another --out") from None


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their whole names, such as "stage1.batch", as JSON has their values."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = json.loads(json.dumps(value))
    return found


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in changed[:3])
