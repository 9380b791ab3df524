"""A folder that is written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from puma_edge.errors import PumaError, UsageError


def check_target(target: Path, marks: Iterable[str], needed: Iterable[Path] = ()) -> None:
    """See that a folder may be replaced by what a command writes, before any work is done.

    Args:
        target: the folder: new, empty, or what the same command has written before.
        marks: files that only what it wrote before has, all of them.
        needed: what the command reads, which must not lie there. Nor must the working folder.

    Raises:
        UsageError: replacing it would remove something else.
    """
    whole = target.resolve()
    for path in (Path.cwd(), *needed):
        inside = path.resolve()
        if path.exists() and whole in (inside, *inside.parents):
            raise UsageError(f"--out {target} would remove {path}; give another folder")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if missing := [name for name in marks if not (target / name).is_file()]:
        raise UsageError(
            f"--out {target} is there, and this command did not write it (it has no {missing[0]}); "
            "give a new or an empty folder"
        )


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Write a folder next to `target`, and put it in its place only if the block succeeds.

    Whatever stood at `target` before stays untouched when the block raises.

    Raises:
        PumaError: the place cannot be written to.
    """
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise PumaError(
            f"cannot write to {target} ({error.strerror}); choose another --out"
        ) from None
    try:
        yield work
        os.chmod(work, 0o755)
        old = work.with_name(work.name + ".old")
        if target.exists():
            target.rename(old)
        try:
            work.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise PumaError(
            f"cannot write {target} ({error}); what was there before is kept"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
