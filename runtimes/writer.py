"""Writing an index so that there is always a whole one: the old one, then the new one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from puma_edge.inputs import Float32
from puma_edge.runtimes.documents import Document, Quarantined
from puma_edge.runtimes.files import sync_folder, write_header
from puma_edge.runtimes.tables import INDEX_COLUMNS
from puma_edge.runtimes.vectors import Storage

FORMAT_VERSION = 1
_BLOCK = 4096
_ROW_GROUP = 16384
SCHEMA = pa.schema([(name, pa.string()) for name in INDEX_COLUMNS])


@dataclass(frozen=True)
class Header:
    """`index.json`: what an index is made of.

    Attributes:
        model_id: the model's identity; queries must come from the same.
        precision: the arithmetic of the graphs that made it.
        provider: engine and device that made it.
        dimension: numbers in a row.
        dtype: type of the numbers.
        rows: rows of the .npy and of the .parquet.
        corpus: the corpus folder as given; the paths are relative to it.
        seen: documents in the corpus: embedded + quarantined + duplicates.
        embedded: rows computed, by this run or one before it.
        quarantined: documents without a row.
        duplicates: rows copied from a document of equal content.
        unsupported: suffix -> files passed over; see `Corpus`.
        resizer: what resized its pictures; several, with commas, after updates by runs with and
            without the extra `fast`. None in an index that is older than this entry.
        format_version: of the whole index.

    """

    model_id: str
    precision: str
    provider: str
    dimension: int
    dtype: str
    rows: int
    corpus: str
    seen: int
    embedded: int
    quarantined: int
    duplicates: int
    unsupported: Mapping[str, int] = field(default_factory=dict)
    resizer: str | None = None
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Outcome:
    """What became of a corpus.

    Attributes:
        kept: the documents with a row, in order.
        quarantine: the others.
        embedded: different contents in `kept`; its other documents are copies of them.
        reused: of the embedded, those whose row stood in the index before.
        vectors: starts over the embedded rows [d], in the order of the first document of each.

    """

    kept: Sequence[Document]
    quarantine: Sequence[Quarantined]
    embedded: int
    reused: int
    vectors: Callable[[], Iterator[Float32]]

    @property
    def duplicates(self) -> int:
        """Rows that are copies."""
        return len(self.kept) - self.embedded


def partial_folder(out: Path) -> Path:
    """Name the folder in which the work on `out` lies until it is done."""
    return out.with_name(out.name + ".partial")


def index_files(out: Path) -> list[str]:
    """Name the files of the index at `out`; the .npy is the last to be put in place."""
    stem = out.name.removesuffix(".npy")
    return [f"{stem}.quarantine.jsonl", f"{stem}.parquet", f"{stem}.json", out.name]


def find_file(out: Path, name: str) -> Path:
    """Find one file of the index at `out`, also if its writer was killed between two renames."""
    ready = partial_folder(out) / "ready" / name
    return ready if ready.exists() else out.parent / name


def write_index(out: Path, outcome: Outcome, header: Header) -> None:
    """Write the index's four files beside each other, then put them in place.

    One rename, of the folder with all four, decides between the old index and the new one; from
    there on `find_file` sees the new one, wherever the moving of its files is interrupted.

    Raises:
        OSError: the disk refuses; the old index is whole.

    """
    work = partial_folder(out)
    staging, ready = work / "staging", work / "ready"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        _fill(staging, out, outcome, header)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)  # on a full disk: give the space back
        raise
    os.replace(staging, ready)
    sync_folder(work)
    finish_publishing(out)


def _fill(folder: Path, out: Path, outcome: Outcome, header: Header) -> None:
    quarantine, table, info, matrix = (folder / name for name in index_files(out))
    lines = [json.dumps(asdict(entry), ensure_ascii=False) for entry in outcome.quarantine]
    # Whatever a reason quotes, the run must end.
    quoted = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    _write(quarantine, lambda file: file.write(quoted))
    _write(table, lambda file: _write_table(file, outcome.kept))
    _write(info, lambda file: file.write(dump_header(header)))
    _write(matrix, lambda file: _write_matrix(file, outcome, header))
    sync_folder(folder)


def finish_publishing(out: Path) -> None:
    """Move a complete index into its place; go on where an earlier run was cut off."""
    ready = partial_folder(out) / "ready"
    if not ready.is_dir():
        return
    for name in index_files(out):
        source, target = ready / name, out.parent / name
        if not source.exists():
            continue
        if name.endswith(".quarantine.jsonl") and not source.stat().st_size:
            target.unlink(missing_ok=True)
            source.unlink()
        else:
            os.replace(source, target)
    sync_folder(out.parent)
    ready.rmdir()


def dump_header(header: Header) -> bytes:
    """What `index.json` holds."""
    return (json.dumps(asdict(header), indent=2, ensure_ascii=False) + "\n").encode()


def _write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    with path.open("w+b") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())


def _write_table(file: IO[bytes], documents: Sequence[Document]) -> None:
    source = iter(documents)
    with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        while group := list(islice(source, _ROW_GROUP)):
            columns = [
                [item.id for item in group],
                [item.path for item in group],
                [item.modality.value for item in group],
                [item.content for item in group],
                [item.text for item in group],
                [item.metadata for item in group],
            ]
            writer.write_table(pa.table(columns, schema=SCHEMA))


def _write_matrix(file: IO[bytes], outcome: Outcome, header: Header) -> None:
    """Join the computed rows, each copied to the later documents of the same content."""
    dtype = Storage(header.dtype).dtype
    write_header(file, (header.rows, header.dimension), dtype)
    start, width = file.tell(), header.dimension * dtype.itemsize
    rows = outcome.vectors()
    first: dict[str, int] = {}
    block = np.empty((_BLOCK, header.dimension), dtype)
    for begin in range(0, header.rows, _BLOCK):
        group = outcome.kept[begin : begin + _BLOCK]
        for slot, document in enumerate(group):
            origin = first.setdefault(document.content, begin + slot)
            if origin == begin + slot:
                block[slot] = next(rows)
            elif origin >= begin:
                block[slot] = block[origin - begin]
            else:
                file.seek(start + origin * width)
                block[slot] = np.frombuffer(file.read(width), dtype)
        file.seek(0, os.SEEK_END)
        file.write(block[: len(group)].data)
