"""Which files are made from an index for faster search, and the proof that they belong to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.bundle import sha256
from puma_edge.errors import PumaError
from puma_edge.runtimes.files import write_bytes
from puma_edge.runtimes.vectors import Form
from puma_edge.runtimes.writer import find_file

_VERSION = 1
_SAMPLE = 16  # rows made again when the files are opened
_FILES = {
    Form.INT8: ("int8.npy", "scales.npy", "int8.json"),
    Form.BINARY: ("binary.npy", "centre.npy", "rotation.npy", "binary.json"),
    Form.HNSW: ("hnsw.usearch", "hnsw.json"),
}


class UnusableError(PumaError):
    """The derived files are not there, or not those of this index."""


def form_files(index: Path, form: Form) -> list[Path]:
    """Name the derived files of a form; the last says what the others were made from."""
    stem = index.name.removesuffix(".npy")
    return [index.with_name(f"{stem}.{part}") for part in _FILES[form]]


def present_forms(index: Path) -> list[Form]:
    """The derived forms that lie beside an index, whether they belong to it or not."""
    return [form for form in _FILES if form_files(index, form)[-1].exists()]


def write_note(index: Path, form: Form, whole: bool = False) -> None:
    """Write down what the files of a form were made from, and what they are.

    Args:
        index: the .npy.
        form: its files must be there.
        whole: their first one, the rows, is hashed too, for readers that a wrong byte would lead
            astray; otherwise the rows are too many to be read, and what they hang on is.

    """
    rows, *others, note = form_files(index, form)
    source = find_file(index, index.name)
    about: dict[str, Any] = {"name": rows.name, "bytes": rows.stat().st_size}
    if whole:
        about = {**about, **_identity(rows), "sha256": sha256(rows)}
    values = {
        "format_version": _VERSION,
        "source": {**_identity(source), "sha256": sha256(source)},
        "rows": about,
        "sha256": {file.name: sha256(file) for file in others},
    }
    write_bytes(note, (json.dumps(values, indent=2) + "\n").encode())


def check_note(index: Path, form: Form) -> None:
    """Compare the files of a form, and the index as it is now, with what was written down.

    Raises:
        UnusableError: the files are not there, damaged, or were made from another index.

    """
    rows, *others, note = form_files(index, form)
    if not note.is_file():
        raise unusable(note, form, "it is not there")
    try:
        values = json.loads(note.read_text(encoding="utf-8"))
        if values["format_version"] != _VERSION:
            raise ValueError(f"format version {values['format_version']}")
        digests, about, source = dict(values["sha256"]), dict(values["rows"]), values["source"]
        found = rows.is_file() and _is_same(rows, about)
        belongs = _is_same(file := find_file(index, index.name), source)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise unusable(note, form, f"it is damaged ({error})") from None
    if not found:
        raise unusable(rows, form, "it is not the file that was written")
    for path in others:
        if not path.is_file() or sha256(path) != digests.get(path.name):
            raise unusable(path, form, "it is not the file that was written")
    if not belongs:
        raise unusable(rows, form, f"{index.name} has changed since")
    now = {**values, "source": {**source, **_identity(file)}}
    if "sha256" in about:
        now["rows"] = {**about, **_identity(rows)}
    if now != values:
        with suppress(OSError):  # a place that cannot be written to is read again each time
            write_bytes(note, (json.dumps(now) + "\n").encode())


def _is_same(path: Path, known: Mapping[str, Any]) -> bool:
    """Tell a file by its size and its time of change; a copy, of another time, by its contents."""
    now = _identity(path)
    if now["bytes"] != known["bytes"]:
        return False
    if "sha256" not in known:
        return True
    return bool(now["mtime_ns"] == known["mtime_ns"] or sha256(path) == known["sha256"])


def _identity(path: Path) -> dict[str, int]:
    info = path.stat()
    return {"bytes": info.st_size, "mtime_ns": info.st_mtime_ns}


def sample(count: int) -> NDArray[np.int64]:
    """Choose a few of so many rows, spread evenly."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, _SAMPLE)).astype(np.int64))


def unusable(path: Path, form: Form, reason: str) -> UnusableError:
    """Say why a file is not used, and what to do."""
    return UnusableError(
        f"{path} is not used: {reason}; make it (again): puma-edge convert INDEX --to {form.value}"
    )
