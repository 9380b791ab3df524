"""A folder that is written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from puma_edge.errors import PumaError


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
