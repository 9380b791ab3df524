"""A row's id in a vector database: stable, and never shared."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puma_edge.runtimes.points import Rows, as_text, point_ids
from puma_edge.runtimes.records import Table
from tests.edge import write_rows
from tests.stores import make_index
from tests.vectors import units

CELLS = st.sampled_from(["", "a", '"', "a b", "\u00e4", "[]"])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(*[CELLS] * 6), min_size=1, max_size=30))
def test_ids_are_stable_and_never_shared(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, ...]]
) -> None:
    """The fast form against a plain one, which counts in a dictionary."""
    path = tmp_path_factory.mktemp("ids") / "index.npy"
    write_rows(path, units(len(cells)))
    import pyarrow.parquet as pq

    from puma_edge.runtimes.writer import SCHEMA

    columns = [list(column) for column in zip(*cells, strict=True)]
    pq.write_table(pa.table(columns, schema=SCHEMA), path.with_suffix(".parquet"), row_group_size=7)
    table = Table(path.with_suffix(".parquet"))
    space = uuid.uuid5(uuid.NAMESPACE_URL, "https://arxiv.org/abs/2507.08064#puma-edge-row")
    counts: Counter[tuple[str, ...]] = Counter()
    plain = []
    for row in cells:
        first = str(uuid.uuid5(space, json.dumps(row)))
        number = counts[row]
        counts[row] += 1
        plain.append(str(uuid.uuid5(space, f"{first} #{number}")) if number else first)
    ids = point_ids(table)
    assert as_text(ids) == plain
    assert len(set(plain)) == len(cells)
    assert Rows(ids).find([*plain, str(uuid.uuid4()), "7"]).tolist() == [*range(len(cells)), -1, -1]


def test_an_id_is_what_it_was(tmp_path: Path) -> None:
    """Collections that were filled by an earlier version must know their rows again."""
    index = make_index(tmp_path / "index.npy", 4)
    assert as_text(point_ids(index.table))[1] == "c3ccf2c7-3f5e-5b8b-aa60-0399e2712970"
