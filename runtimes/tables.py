"""Parquet files whose rows are documents: text, image path, id, and whatever else they say."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from puma_edge.errors import InputError
from puma_edge.runtimes.parts import Line, Span, make_line

TABLE_SUFFIX = ".parquet"
# Of the table of an index. It may lie in the corpus: its rows are no documents.
INDEX_COLUMNS = ("id", "path", "modality", "hash", "text", "metadata")
MAX_GROUP_BYTES = 256 * 2**20
_BATCH = 1024  # rows


def read_table(path: str) -> Iterator[tuple[int, Span, Line | InputError]]:
    """List number (from 1), row group and row in it, and content of each row; none of an index's.

    Raises:
        InputError: the file is no Parquet, is damaged, or has neither a text nor an image column.

    """
    try:
        with _open(path) as file:
            names = file.schema_arrow.names
            if tuple(names) == INDEX_COLUMNS:
                return
            if "text" not in names and "image" not in names:
                there = ", ".join(names[:8]) or "none"
                raise InputError(f'has neither a "text" nor an "image" column (columns: {there})')
            if not file.metadata.num_rows:
                raise InputError("the table has no rows")
            number = 0
            for group in range(file.metadata.num_row_groups):
                _refuse_large(file, group)
                row = 0
                for batch in file.iter_batches(_BATCH, row_groups=[group], use_threads=False):
                    for place in range(batch.num_rows):
                        # One at a time: rows that repeat a long value hold it once until then.
                        (values,) = batch.slice(place, 1).to_pylist()
                        number += 1
                        yield number, (group, row), _line(values)
                        row += 1
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise InputError(f"cannot be read as Parquet ({_one_line(error)})") from None


def read_cell(path: str, group: int, row: int) -> str | None:
    """Read again the text of a row that `read_table` found.

    Raises:
        InputError: it is not there any more.

    """
    try:
        changed = os.stat(path).st_mtime_ns
        column = _texts(path, changed, group)
        value = None if column is None else column[row].as_py()
    except (OSError, ValueError, IndexError, pa.ArrowException) as error:
        raise InputError(f"cannot be read as Parquet ({_one_line(error)})") from None
    return make_line({"text": value, "image": "-"}).text


# Documents come in the order of their rows: two groups are what feeders that run apart need.
@lru_cache(maxsize=2)
def _texts(path: str, changed: int, group: int) -> pa.ChunkedArray | None:
    with _open(path) as file:
        if "text" not in file.schema_arrow.names:
            return None
        _refuse_large(file, group)
        return file.read_row_group(group, columns=["text"], use_threads=False).column(0)


def open_file(path: str | Path) -> pa.NativeFile:
    """Open a file for pyarrow, which itself opens none whose name is no UTF-8."""
    return pa.OSFile(os.fsencode(path))


def _open(path: str) -> pq.ParquetFile:
    # A pipe called x.parquet would block for ever when opened.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise InputError("not a regular file")
    about = pq.read_metadata(open_file(path))
    columns = [about.schema.column(place) for place in range(about.num_columns)]
    # Kept as they are written, each different value once: a small file can repeat a long one.
    words = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    return pq.ParquetFile(open_file(path), metadata=about, read_dictionary=words)


def _refuse_large(file: pq.ParquetFile, group: int) -> None:
    size = file.metadata.row_group(group).total_byte_size
    if size > MAX_GROUP_BYTES:
        raise InputError(
            f"row group {group} holds {size} bytes, over the limit of {MAX_GROUP_BYTES}; "
            "write the table with smaller row groups"
        )


def _line(values: dict[str, Any]) -> Line | InputError:
    # A table has every column in every row: what is null in one is not there.
    there = {name: value for name, value in values.items() if value is not None}
    plain = {
        name: there[name] if name in ("text", "image") else _plain(there[name]) for name in there
    }
    try:
        return make_line(plain)
    except InputError as error:
        return error


def _plain(value: Any) -> Any:
    """Turn what a column can hold into what JSON can."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
