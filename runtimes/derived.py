"""Files made from an index for faster search, and the proof that they still belong to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.bundle import sha256
from puma_edge.errors import PumaError
from puma_edge.inputs import Float32
from puma_edge.runtimes.codes import Coded, Rotation, to_int8
from puma_edge.runtimes.files import replacing, write_array, write_bytes, write_header
from puma_edge.runtimes.kernels import UInt8
from puma_edge.runtimes.vectors import Form
from puma_edge.runtimes.writer import find_file

_VERSION = 1
_BLOCK = 4096  # rows
_SAMPLE = 16  # rows made again when the files are opened


@dataclass(frozen=True)
class Bits:
    """Rows as bits, and how queries become bits."""

    bits: UInt8
    rotation: Rotation


class UnusableError(PumaError):
    """The derived files are not there, or not those of this index."""


def form_files(index: Path, form: Form) -> list[Path]:
    """Name the derived files of a form; the last says what the others were made from."""
    stem = index.name.removesuffix(".npy")
    parts = {
        Form.INT8: ("int8.npy", "scales.npy", "int8.json"),
        Form.BINARY: ("binary.npy", "centre.npy", "rotation.npy", "binary.json"),
    }[form]
    return [index.with_name(f"{stem}.{part}") for part in parts]


def present_forms(index: Path) -> list[Form]:
    """The derived forms that lie beside an index, whether they belong to it or not."""
    return [form for form in (Form.INT8, Form.BINARY) if form_files(index, form)[-1].exists()]


def write_int8(index: Path, vectors: NDArray[Any]) -> None:
    """Write `index.int8.npy` and `index.scales.npy`.

    Raises:
        PumaError: a row holds something that is no number.
        OSError: the disk refuses.

    """
    codes, scales, note = form_files(index, Form.INT8)
    note.unlink(missing_ok=True)  # from here on, until the end, nothing vouches for the others
    every = np.empty(len(vectors), np.float32)
    with replacing(codes) as file:
        write_header(file, vectors.shape, np.dtype(np.int8))
        for begin, block in blocks(vectors):
            coded = to_int8(block)
            every[begin : begin + len(block)] = coded.scales
            file.write(coded.codes.data)
    write_array(scales, every)
    _write_note(index, note, (codes, scales))


def write_binary(index: Path, vectors: NDArray[Any]) -> None:
    """Write `index.binary.npy` and how it was rotated.

    Raises:
        PumaError: a row holds something that is no number.
        OSError: the disk refuses.

    """
    bits, centre, axes, note = form_files(index, Form.BINARY)
    note.unlink(missing_ok=True)
    total = np.zeros(vectors.shape[1], np.float64)
    for _, block in blocks(vectors):
        total += block.sum(axis=0, dtype=np.float64)
    rotation = Rotation.draw((total / max(len(vectors), 1)).astype(np.float32))
    width = -(-vectors.shape[1] // 8)

    def fill(file: IO[bytes]) -> None:
        write_header(file, (len(vectors), width), np.dtype(np.uint8))
        for _, block in blocks(vectors):
            file.write(rotation.to_bits(block).data)

    with replacing(bits) as file:
        fill(file)
    write_array(centre, rotation.centre)
    write_array(axes, rotation.axes)
    _write_note(index, note, (bits, centre, axes))


def open_int8(index: Path, vectors: NDArray[Any]) -> Coded:
    """Map the int8 rows of an index [rows, d].

    Raises:
        UnusableError: they are not there, damaged, or not those of this index.

    """
    codes, scales, note = form_files(index, Form.INT8)
    _check_note(index, note, Form.INT8)
    coded = Coded(
        _map(codes, Form.INT8, np.int8, vectors.shape),
        _map(scales, Form.INT8, np.float32, vectors.shape[:1]),
    )
    rows = _sample(len(vectors))
    again = to_int8(vectors[rows])
    same = np.array_equal(again.codes, coded.codes[rows])
    if not same or not np.array_equal(again.scales, coded.scales[rows]):
        raise _unusable(codes, Form.INT8, "some of its rows are not those of the index")
    return coded


def open_binary(index: Path, vectors: NDArray[Any]) -> Bits:
    """Map the bits of an index's rows.

    Raises:
        UnusableError: they are not there, damaged, or not those of this index.

    """
    bits, centre, axes, note = form_files(index, Form.BINARY)
    _check_note(index, note, Form.BINARY)
    count, width = vectors.shape
    rotation = Rotation(
        _map(centre, Form.BINARY, np.float32, (width,)),
        _map(axes, Form.BINARY, np.float32, (width, width)),
    )
    mapped = _map(bits, Form.BINARY, np.uint8, (count, -(-width // 8)))
    rows = _sample(count)
    differ = np.bitwise_count(rotation.to_bits(vectors[rows]) ^ mapped[rows]).sum()
    # Another BLAS adds in another order: a number next to zero may change its sign.
    if differ > 0.01 * width * len(rows):
        raise _unusable(bits, Form.BINARY, "some of its rows are not those of the index")
    return Bits(mapped, rotation)


def blocks(vectors: NDArray[Any]) -> Iterator[tuple[int, Float32]]:
    """Go through rows [rows, d], a few thousand at a time: the first one's number, and they.

    Raises:
        PumaError: a row holds something that is no number.

    """
    for begin in range(0, len(vectors), _BLOCK):
        block = vectors[begin : begin + _BLOCK].astype(np.float32, order="C")
        if not (finite := np.isfinite(block).all(axis=1)).all():
            row = begin + int(np.argmin(finite))
            raise PumaError(f"row {row} of the index is not finite; embed the corpus again")
        yield begin, block


def _write_note(index: Path, note: Path, files: tuple[Path, ...]) -> None:
    values = {
        "format_version": _VERSION,
        "source": {**_identity(find_file(index, index.name)), "sha256": sha256(index)},
        # The rows are too many to be read each time; what all of them hang on is read.
        "rows": {"name": files[0].name, "bytes": files[0].stat().st_size},
        "sha256": {file.name: sha256(file) for file in files[1:]},
    }
    write_bytes(note, (json.dumps(values, indent=2) + "\n").encode())


def _check_note(index: Path, note: Path, form: Form) -> None:
    """Compare what the files were made from with the index as it is now.

    Its size and its time of change tell that it is the same file; a copy has another time, and is
    read once to tell.
    """
    if not note.is_file():
        raise _unusable(note, form, "it is not there")
    try:
        values = json.loads(note.read_text(encoding="utf-8"))
        if values["format_version"] != _VERSION:
            raise ValueError(f"format version {values['format_version']}")
        source, digests = values["source"], dict(values["sha256"])
        known = {name: source[name] for name in ("bytes", "mtime_ns")}
        digest, size = source["sha256"], values["rows"]["bytes"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unusable(note, form, f"it is damaged ({error})") from None
    rows, *others, _ = form_files(index, form)
    if not rows.is_file() or rows.stat().st_size != size:
        raise _unusable(rows, form, "it is not the file that was written")
    for path in others:
        if not path.is_file() or sha256(path) != digests.get(path.name):
            raise _unusable(path, form, "it is not the file that was written")
    file = find_file(index, index.name)
    now = _identity(file)
    if now == known:
        return
    if now["bytes"] != known["bytes"] or sha256(file) != digest:
        raise _unusable(rows, form, f"{index.name} has changed since")
    with suppress(OSError):  # a place that cannot be written to is read again each time
        write_bytes(note, (json.dumps({**values, "source": {**source, **now}}) + "\n").encode())


def _identity(path: Path) -> dict[str, int]:
    info = path.stat()
    return {"bytes": info.st_size, "mtime_ns": info.st_mtime_ns}


def _sample(count: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, _SAMPLE)).astype(np.int64))


def _map(path: Path, form: Form, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise _unusable(path, form, f"it is damaged ({error})") from None
    if found.dtype != dtype or found.shape != shape:
        raise _unusable(path, form, f"it holds {found.dtype} {found.shape}, not {shape}")
    # A plain array over the same bytes: slices of a memmap cost more than their products.
    return np.asarray(found)


def _unusable(path: Path, form: Form, reason: str) -> UnusableError:
    return UnusableError(
        f"{path} is not used: {reason}; make it (again): puma-edge convert INDEX --to {form.value}"
    )


WRITERS: dict[Form, Callable[[Path, NDArray[Any]], None]] = {
    Form.INT8: write_int8,
    Form.BINARY: write_binary,
}
