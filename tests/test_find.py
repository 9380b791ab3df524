"""Filters, query files, hits above a threshold, and more like a row; the last as a process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puma_edge.errors import UsageError
from puma_edge.prompts import Modality
from puma_edge.runtimes.filters import Filters, parse_where
from puma_edge.runtimes.index import Index, SearchSettings
from puma_edge.runtimes.query_file import read_queries
from puma_edge.runtimes.searcher import Query, Wanted, search
from tests.commands import puma
from tests.edge import write_rows
from tests.vectors import units

COUNT = 150  # more than two of the table's groups
METADATA = [
    {"lang": ("en", "de")[n % 2], "price": n % 3, "tags": ["a", str(n % 5)], "new": n % 2 == 0}
    for n in range(COUNT)
]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.open(write_rows(tmp_path / "index.npy", units(COUNT, 16, seed=0), METADATA))


def left(index: Index, filters: Filters) -> list[int]:
    return np.flatnonzero(filters.rows(index.table, len(index))).tolist()


def test_filters_leave_what_they_name(index: Index) -> None:
    every = range(COUNT)
    records = index.records(every)
    text = Filters(modalities=(Modality.TEXT,))
    assert left(index, text) == [n for n in every if records[n].modality is Modality.TEXT]
    both = Filters(modalities=(Modality.TEXT, Modality.IMAGE))
    assert left(index, both) == list(every)
    folder = Filters(path="a/*.txt")
    expected = [n for n in every if records[n].path.startswith("a/") and n % 2 == 0]
    assert left(index, folder) == expected
    for given_, test in (
        (["lang=de"], lambda n: n % 2 == 1),
        (["price=2"], lambda n: n % 3 == 2),
        (["new=true"], lambda n: n % 2 == 0),
        (["tags=3"], lambda n: n % 5 == 3),
        (["tags=a", "price=0"], lambda n: n % 3 == 0),
        (["id=id-7"], lambda n: n == 7),
        (["text=text 8", "lang=en"], lambda n: n == 8),
        (["lang=xx"], lambda n: False),
    ):
        assert left(index, Filters(where=parse_where(given_))) == [n for n in every if test(n)]
    assert left(index, Filters((Modality.IMAGE,), "b/*", (("price", "1"),))) == [
        n for n in every if n % 2 and n // 2 % 2 and n % 3 == 1
    ]
    assert not Filters()


def test_filters_that_cannot_be_asked(index: Index) -> None:
    with pytest.raises(UsageError, match=r"no row has 'colour'.*lang, new, price, tags"):
        left(index, Filters(where=(("colour", "red"),)))
    for wrong in ("lang", "=en"):
        with pytest.raises(UsageError, match="column=value"):
            parse_where([wrong])


def test_a_row_that_is_nested_deep_bars_no_filter(tmp_path: Path) -> None:
    deep: object = 1
    for _ in range(480):
        deep = [deep]
    path = write_rows(tmp_path / "index.npy", units(2), [{"m": deep}, {"m": [1, 2]}])
    assert left(Index.open(path), Filters(where=(("m", "1"),))) == [1]


def test_an_index_of_any_name_is_told_of(tmp_path: Path) -> None:
    write_rows(tmp_path / "index.npy", units(20))
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / f"\udcff{path.suffix}")
    line = ("convert", "\udcff.npy", "--to", "int8")
    done = puma(*line, cwd=tmp_path, PYTHONIOENCODING="utf-8:strict")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\udcff.int8.npy" in done.stdout


@settings(max_examples=30, deadline=None)
@given(
    least=st.floats(-1, 1), top=st.integers(1, 170), alone=st.booleans(), seed=st.integers(0, 99)
)
def test_hits_are_the_best_allowed_ones_above_the_threshold(
    tmp_path_factory: pytest.TempPathFactory, least: float, top: int, alone: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((COUNT, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    folder = tmp_path_factory.mktemp("index")
    index = Index.open(write_rows(folder / "index.npy", vectors))
    allowed = rng.random(COUNT) < 0.7
    own = [3, None] if alone else []
    wanted = Wanted(top, SearchSettings(allowed=allowed), least, own)
    hits = search(index, vectors[[3, 9]], wanted)
    for query, itself, found in zip((3, 9), own or [None, None], hits, strict=True):
        scores = vectors @ vectors[query]
        order = [n for n in np.argsort(-scores, kind="stable") if allowed[n] and n != itself]
        expected = [n for n in order if scores[n] >= least - 1e-6][:top]
        assert [hit.row for hit in found if hit.score > least + 1e-6] == [
            n for n in expected if scores[n] > least + 1e-6
        ]
        assert [hit.rank for hit in found] == list(range(1, len(found) + 1))
        assert all(hit.score >= least for hit in found)
        assert all(hit.id == f"id-{hit.row}" for hit in found)


def test_queries_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("\ufeffa fox\r\n\n  ein Fuchs \n", encoding="utf-8")
    assert read_queries(tmp_path / "q.txt", "Find.") == [
        Query("a fox", None, "Find."),
        Query("ein Fuchs", None, "Find."),
    ]
    lines = [
        {"text": "a"},
        {"image": "p/q.jpg"},
        {"text": "b", "image": "r.png", "instruction": ""},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_queries(tmp_path / "q.jsonl", "Find.") == [
        Query("a", None, "Find."),
        Query(None, tmp_path / "p/q.jpg", "Find."),
        Query("b", tmp_path / "r.png", ""),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("q.txt", b" \n\n", "no query"),
        ("q.txt", b"\xff\xfe\xff", "cannot be read"),
        ("q.jsonl", b'{"text": "a"}\nno json\n', "line 2"),
        ("q.jsonl", b"[" * 100_000, "is no JSON"),
        ("q.jsonl", b'["a"]', "expected an object"),
        ("q.jsonl", b'{"txt": "a"}', "expected an object"),
        ("q.jsonl", b'{"text": 3}', "expected an object"),
        ("q.jsonl", b'{"text": " "}', "neither text nor image"),
    ],
)
def test_query_files_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        read_queries(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_more_like_a_row_needs_no_bundle(index: Index) -> None:
    folder = index.path.parent
    done = puma("convert", "index.npy", "--to", "int8", "--json", cwd=folder)
    made = json.loads(done.stdout)
    assert made["recall"] == 1
    assert set(made["sizes"]) == {"index.int8.npy", "index.scales.npy", "index.int8.json"}
    about = json.loads(puma("info", "index.npy", "--json", cwd=folder).stdout)
    assert about["forms"] == "exact, int8"
    line = ("search", "index.npy", "--like", "id-3", "--like", "5", "--top", "4", "--json")
    done = puma(*line, "--where", "price=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [one["query"]["like"] for one in answers] == ["id-3", "id-5"]
    for row, answer in zip((3, 5), answers, strict=True):
        scores = index.vectors @ index.vectors[row]
        order = [n for n in np.argsort(-scores) if n % 3 == 1 and n != row]
        assert [hit["row"] for hit in answer["hits"]] == order[:4]
    np.save(index.path, index.vectors * np.float32(-1))  # the int8 rows are stale now
    done = puma(*line, cwd=folder)
    assert "warning" in done.stderr
    assert "has changed since" in done.stderr
    again = json.loads(done.stdout)
    assert again[0]["hits"][0]["score"] == pytest.approx(
        np.sort(index.vectors @ index.vectors[3])[-2]
    )
    done = puma(*line, "--form", "int8", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_settings_stand_in_a_file(index: Index) -> None:
    folder = index.path.parent
    line = ("search", "index.npy", "--like", "id-3", "--json")
    table = '[search]\ntop = 3\nmodality = ["image"]\nwhere = ["lang=de"]\nthreshold = -1\n'
    (folder / "puma-edge.toml").write_text(table + 'path = "a/*"\nform = "exact"\nthreads = 1\n')
    hits = json.loads(puma(*line, cwd=folder).stdout)[0]["hits"]
    scores = index.vectors @ index.vectors[3]
    kept = [n for n in np.argsort(-scores) if n % 2 and n // 2 % 2 == 0 and n != 3]
    assert [hit["row"] for hit in hits] == kept[:3]
    done = puma(*line, "--top", "2", "--path", "*", cwd=folder)  # what is given goes before it
    kept = [n for n in np.argsort(-scores) if n % 2 and n != 3]
    assert [hit["row"] for hit in json.loads(done.stdout)[0]["hits"]] == kept[:2]
    other = folder / "other.toml"
    for text, says in (
        ("[search]\ntopp = 3\n", "unknown setting 'topp' in [search]"),
        ("[search]\nform = 'fast'\n", "expected one of: auto, exact, int8, binary, hnsw"),
        ("[search]\nwhere = 'lang=en'\n", "where: 'lang=en' given, expected a list"),
        ("[search]\nthreshold = 'high'\n", "threshold: 'high' given, expected float"),
        ("[search]\nbundle = 3\n", "bundle: 3 given, expected a path in quotes"),
        ("[search]\nmodality = ['film']\n", "modality: 'film' given, expected one of"),
    ):
        other.write_text(text)
        done = puma(*line, "--config", "other.toml", cwd=folder)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert says in done.stderr


BAD = [
    (("search", "index.npy", "--like", "nope"), 1, "no row with that id"),
    (("search", "index.npy", "--like", "150"), 1, "no row with that id"),
    (("search", "index.npy", "--like", "\udcff"), 1, "no row with that id"),
    (("search", "index.npy", "--like", "3", "--top", "0"), 2, "top is 0"),
    (("search", "index.npy", "--like", "3", "--top", "-1"), 2, "top is -1"),
    (("search", "index.npy", "--like", "3", "--threshold", "nan"), 2, "threshold is nan"),
    (("search", "index.npy", "--like", "3", "--where", "x"), 2, "column=value"),
    (("search", "index.npy", "--like", "3", "--dim", "17"), 2, "17 dimensions"),
    (("search", "index.npy", "--like", "3", "--form", "binary"), 1, "is not used"),
    (("search", "index.npy", "--queries", "nowhere.txt"), 2, "nowhere.txt cannot be read"),
    (("convert", "nowhere.npy", "--to", "int8"), 1, "there is no index"),
    (("convert", "index.npy", "--to", "fp32"), 2, "float32 already"),
]


@pytest.mark.parametrize(("line", "code", "says"), BAD)
def test_bad_input_is_one_line(index: Index, line: tuple[str, ...], code: int, says: str) -> None:
    before = sorted(index.path.parent.iterdir())
    done = puma(*line, cwd=index.path.parent)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert done.stderr.startswith("puma-edge: ")
    assert done.stderr.count("\n") == 1
    assert sorted(index.path.parent.iterdir()) == before
