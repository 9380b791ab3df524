"""Parquet tables of documents: like JSONL, row by row, and nothing lost."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from puma_edge.prompts import Modality
from puma_edge.runtimes import tables
from puma_edge.runtimes.corpus import scan
from puma_edge.runtimes.documents import load
from tests.checkout import run_python
from tests.edge import embed, encoded, fill, picture

PNG = encoded(picture(1))


def write(path: Path, columns: dict[str, list[Any]], rows: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows)


def test_rows_are_documents(tmp_path: Path) -> None:
    fill(tmp_path, {"pictures/b.png": PNG})
    columns = {
        "id": [7, None, None, 9, 10],
        "text": ["a fox", None, " both ", "  ", "last\0"],
        "image": [None, "pictures/b.png", "pictures/b.png", None, None],
        "price": [1.5, float("nan"), None, 2.0, 3.0],
        "when": [datetime.date(2026, 1, 2)] * 5,
        "raw": [b"abc"] * 5,
    }
    write(tmp_path / "rows.parquet", columns)
    corpus = scan(tmp_path)
    assert [(item.id, item.path, item.modality, item.text) for item in corpus.documents] == [
        ("7", "rows.parquet", Modality.TEXT, "a fox"),
        ("pictures/b.png", "pictures/b.png", Modality.IMAGE, ""),
        ("rows.parquet#2", "pictures/b.png", Modality.IMAGE, ""),
        ("rows.parquet#3", "pictures/b.png", Modality.IMAGE_TEXT, "both"),
    ]
    first = json.loads(corpus.documents[0].metadata)
    assert first == {"price": 1.5, "when": "2026-01-02", "raw": "3 bytes"}
    assert json.loads(corpus.documents[2].metadata)["price"] is None
    assert {entry.path: entry.reason for entry in corpus.quarantine} == {
        "rows.parquet#4": 'has neither "text" nor "image"',
        "rows.parquet#5": "holds NUL characters, so it is no text",
    }
    for document in corpus.documents:
        loaded = load(tmp_path, document)
        assert (loaded.text or "") == document.text
    assert load(tmp_path, corpus.documents[-1]).image == PNG
    report = embed(tmp_path, tmp_path / "out" / "index.npy")
    assert (report.seen, report.embedded, report.duplicates, report.quarantined) == (6, 3, 1, 2)


def test_tables_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    root = tmp_path / "corpus"
    write(root / "other.parquet", {"a": [1], "b": [2]})
    write(root / "none.parquet", {"text": pa.array([], pa.string())})
    write(root / "good.parquet", {"text": ["one", "two", "three"]})
    write(root / "types.parquet", {"text": [1], "image": [b"x"]})
    write(
        root / "paths.parquet", {"image": ["../secret.png", str(tmp_path / "secret.png"), "no.png"]}
    )
    whole = (root / "good.parquet").read_bytes()
    fill(root, {"short.parquet": whole[:-20], "empty.parquet": b"", "text.parquet": "text"})
    damaged = bytearray(whole)
    damaged[4:40] = bytes(36)
    fill(root, {"damaged.parquet": bytes(damaged)})
    os.mkfifo(root / "pipe.parquet")
    corpus = scan(root)
    reasons = {entry.path: entry.reason for entry in corpus.quarantine}
    assert [item.id for item in corpus.documents if not item.id.startswith("damaged")] == [
        f"good.parquet#{row}" for row in (1, 2, 3)
    ]
    assert 'neither a "text" nor an "image" column (columns: a, b)' in reasons["other.parquet"]
    assert reasons["none.parquet"] == "the table has no rows"
    assert "expected a string" in reasons["types.parquet#1"]
    assert "outside" in reasons["paths.parquet#1"]
    assert "outside" in reasons["paths.parquet#2"]
    assert "cannot be read" in reasons["paths.parquet#3"]
    for name in ("short", "empty", "text", "damaged"):
        assert "cannot be read as Parquet" in reasons[f"{name}.parquet"]
    assert reasons["pipe.parquet"] == "not a regular file"
    monkeypatch.setattr(tables, "MAX_GROUP_BYTES", 10)
    reasons = {entry.path: entry.reason for entry in scan(root).quarantine}
    assert "write the table with smaller row groups" in reasons["good.parquet"]


REPEATED = """
import resource, sys
from pathlib import Path
from puma_edge.runtimes.corpus import scan
from puma_edge.runtimes.documents import load

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

corpus = scan(Path(sys.argv[1]) / "empty")
before = peak()
corpus = scan(Path(sys.argv[1]) / "corpus")
assert len(load(corpus.root, corpus.documents[-1]).text) == 119_999
print(len(corpus.documents), peak() - before)
"""


def test_a_long_text_that_rows_repeat_is_held_once(tmp_path: Path) -> None:
    long = pa.array(["lorem ipsum " * 10_000])
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), long)
    columns = {"text": text, "tags": [["a", "b"]] * 2000}
    write(tmp_path / "corpus" / "t.parquet", columns, rows=2000)
    (tmp_path / "empty").mkdir()
    assert (tmp_path / "corpus" / "t.parquet").stat().st_size < 20_000
    found, grown = map(int, run_python("-c", REPEATED, str(tmp_path)).split())
    assert found == 2000
    assert grown < 40, grown  # MB; a thousand rows written out are 120


def test_a_table_whose_name_is_no_utf8_is_read(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", {"text": ["a fox"]})
    (tmp_path / "t.parquet").rename(tmp_path / os.fsdecode(b"caf\xe9.parquet"))
    corpus = scan(tmp_path)
    assert [item.id for item in corpus.documents] == ["caf\\xe9.parquet#1"]
    assert load(tmp_path, corpus.documents[0]).text == "a fox"


def test_tables_are_read_by_their_row_groups(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", {"text": [f"text {n}" for n in range(500)]}, rows=7)
    corpus = scan(tmp_path)
    assert [item.span for item in corpus.documents[:9]] == [
        *((0, row) for row in range(7)), *((1, row) for row in range(2)),
    ]  # fmt: skip
    tables._texts.cache_clear()
    texts = [load(tmp_path, item).text for item in corpus.documents]
    assert texts == [f"text {n}" for n in range(500)]
    assert tables._texts.cache_info().misses == 72
    tables._texts.cache_clear()
