"""Rows of an index in fewer bytes, in files beside it: int8 with a scale per row, and bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import PumaError
from puma_edge.inputs import Float32
from puma_edge.runtimes.codes import Coded, Rotation, to_int8
from puma_edge.runtimes.files import replacing, write_array, write_header
from puma_edge.runtimes.kernels import UInt8
from puma_edge.runtimes.notes import check_note, form_files, sample, unusable, write_note
from puma_edge.runtimes.vectors import Form

_BLOCK = 4096  # rows


@dataclass(frozen=True)
class Bits:
    """Rows as bits, and how queries become bits."""

    bits: UInt8
    rotation: Rotation


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
    write_note(index, Form.INT8)


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
    write_note(index, Form.BINARY)


def open_int8(index: Path, vectors: NDArray[Any]) -> Coded:
    """Map the int8 rows of an index [rows, d].

    Raises:
        UnusableError: they are not there, damaged, or not those of this index.

    """
    codes, scales, _ = form_files(index, Form.INT8)
    check_note(index, Form.INT8)
    coded = Coded(
        _map(codes, Form.INT8, np.int8, vectors.shape),
        _map(scales, Form.INT8, np.float32, vectors.shape[:1]),
    )
    rows = sample(len(vectors))
    again = to_int8(vectors[rows])
    same = np.array_equal(again.codes, coded.codes[rows])
    if not same or not np.array_equal(again.scales, coded.scales[rows]):
        raise unusable(codes, Form.INT8, "some of its rows are not those of the index")
    return coded


def open_binary(index: Path, vectors: NDArray[Any]) -> Bits:
    """Map the bits of an index's rows.

    Raises:
        UnusableError: they are not there, damaged, or not those of this index.

    """
    bits, centre, axes, _ = form_files(index, Form.BINARY)
    check_note(index, Form.BINARY)
    count, width = vectors.shape
    rotation = Rotation(
        _map(centre, Form.BINARY, np.float32, (width,)),
        _map(axes, Form.BINARY, np.float32, (width, width)),
    )
    mapped = _map(bits, Form.BINARY, np.uint8, (count, -(-width // 8)))
    rows = sample(count)
    differ = np.bitwise_count(rotation.to_bits(vectors[rows]) ^ mapped[rows]).sum()
    # Another BLAS adds in another order: a number next to zero may change its sign.
    if differ > 0.01 * width * len(rows):
        raise unusable(bits, Form.BINARY, "some of its rows are not those of the index")
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


def _map(path: Path, form: Form, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise unusable(path, form, f"it is damaged ({error})") from None
    if found.dtype != dtype or found.shape != shape:
        raise unusable(path, form, f"it holds {found.dtype} {found.shape}, not {shape}")
    # A plain array over the same bytes: slices of a memmap cost more than their products.
    return np.asarray(found)
