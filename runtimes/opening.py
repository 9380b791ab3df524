"""Reading the files of an index: damage is one line that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import PumaError
from puma_edge.runtimes.records import AGAIN, Table
from puma_edge.runtimes.writer import FORMAT_VERSION, Header


def read_header(path: Path, index: Path) -> Header:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format_version"]
    except FileNotFoundError:
        raise PumaError(f"{index} has no {path.name} beside it; {AGAIN}") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise PumaError(f"{path} is damaged ({error}); {AGAIN}") from None
    if version != FORMAT_VERSION:
        raise PumaError(
            f"{index} has format version {version}, this puma-edge reads {FORMAT_VERSION}; {AGAIN}"
        )
    try:
        return Header(**values)
    except TypeError as error:
        raise PumaError(f"{path} is damaged ({error}); {AGAIN}") from None


def map_matrix(path: Path) -> NDArray[Any]:
    try:
        vectors: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        if vectors.ndim == 2:
            return vectors
        reason = f"it has {vectors.ndim} axes"
    except (OSError, ValueError, EOFError, AttributeError) as error:
        reason = str(error)
    raise PumaError(f"{path} is no index ({reason}); {AGAIN}")


def open_table(path: Path, index: Path) -> Table:
    if not path.exists():
        raise PumaError(f"{index} has no {path.name} beside it; {AGAIN}")
    return Table(path)
