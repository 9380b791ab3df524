"""Writing that survives: temporary file, fsync, rename; a lock; a full disk as one clear line."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import PumaError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn what the disk says while `target` is written into one line for the user.

    Raises:
        PumaError: the disk is full, read-only, or the place may not be written to.

    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise PumaError(
                f"no space left on the disk while writing {target}; what was there before is kept, "
                "and so is the work done: free some space and run the same command again"
            ) from error
        reason = error.strerror or str(error)
        raise PumaError(
            f"cannot write {target} ({reason}); what was there before is kept: "
            "choose another --out, or make this one writable"
        ) from error


@contextmanager
def locked(folder: Path, target: Path, name: str = "lock") -> Iterator[None]:
    """Hold `folder` for this process alone; the system frees it however the process ends.

    Args:
        folder: made if it is not there.
        target: what is written with its help, for the messages.
        name: of the lock's file; where only a part of the folder is held, that part's.

    Raises:
        PumaError: another process holds it, or the folder cannot be made.

    """
    with disk_errors(target):
        handle = _lock(folder / name, target)
    try:
        yield
    finally:
        os.close(handle)


def _lock(path: Path, target: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise PumaError(
                f"another run is writing {target} ({path} is locked); "
                "wait for it to end, or choose another --out"
            ) from None
        # The run before may have removed the folder between our open and our lock; then what is
        # locked is a file that nobody else will ever see.
        if _same_file(path, handle):
            return handle
        os.close(handle)


def _same_file(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file so that it is there whole, or not at all; what stood there stays until then."""
    work = path.with_name(path.name + ".tmp")
    try:
        with work.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, path)
    finally:
        work.unlink(missing_ok=True)  # after a failure: give the space back


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file whole, or not at all."""
    with replacing(path) as file:
        file.write(data)


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy whole, or not at all."""
    with replacing(path) as file:
        write_header(file, array.shape, array.dtype)
        # Not ndarray.tofile: on a full disk it raises an error without a number.
        file.write(np.ascontiguousarray(array).data)


def write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Write the header of a C-ordered .npy, after which the bytes of its rows follow."""
    header = {
        "shape": shape,
        "fortran_order": False,
        "descr": np.lib.format.dtype_to_descr(dtype),
    }
    np.lib.format.write_array_header_1_0(file, header)
