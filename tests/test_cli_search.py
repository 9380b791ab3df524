"""`puma-edge search`: words, pictures, filters, tables and sheets; and the same from Python."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import puma
from tests.edge import encoded, fill


def test_search_by_words_by_picture_and_by_both(work: Path) -> None:
    picture = next((work / "corpus" / "pictures").iterdir())
    done = puma("search", "index.npy", "a fox", "red heart", "--top", "3", "--json", cwd=work)
    answers = json.loads(done.stdout)
    assert [one["query"]["text"] for one in answers] == ["a fox", "red heart"]
    assert all(len(one["hits"]) == 3 for one in answers)
    image = ("--image", str(picture), "--json")
    alone = json.loads(puma("search", "index.npy", *image, cwd=work).stdout)
    both = json.loads(puma("search", "index.npy", "in blue", *image, cwd=work).stdout)
    assert alone[0]["hits"] != both[0]["hits"]
    assert len(alone[0]["hits"]) == 10


def test_search_with_filters_and_many_queries(work: Path, tmp_path: Path) -> None:
    picture = next((work / "corpus" / "pictures").iterdir())
    lines = [{"text": "a fox"}, {"text": "in blue", "image": str(picture)}]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, lines)))
    many = ("search", "index.npy", "--queries", str(tmp_path / "many.jsonl"), "--json")
    done = puma(*many, "--modality", "image", "--path", "*/[a-f]*", "--top", "4", cwd=work)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [one["query"]["text"] for one in answers] == ["a fox", "in blue"]
    for hit in (hit for one in answers for hit in one["hits"]):
        assert hit["modality"] == "image"
        assert Path(hit["path"]).name[0] in "abcdef"
    least = answers[0]["hits"][1]["score"]
    done = puma("search", "index.npy", "a fox", "--threshold", str(least), "--json", cwd=work)
    assert all(hit["score"] >= least for hit in json.loads(done.stdout)[0]["hits"])
    done = puma("search", "index.npy", "a fox", "--dim", "32", cwd=work)
    assert done.returncode == 0
    assert "not trained for 32 dimensions" in done.stderr


def test_scores_are_cosines_in_an_index_of_fewer_dimensions(work: Path, tmp_path: Path) -> None:
    fill(tmp_path / "corpus", {"a.txt": "a fox", "b.txt": "red heart"})
    given = ("--bundle", str(work / "bundle"))
    done = puma("embed", "corpus", "--dim", "32", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = ("search", "index.npy", "a fox", "--instruction", "", "--top", "1", "--json")
    (answer,) = json.loads(puma(*line, *given, cwd=tmp_path).stdout)
    assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_of_a_large_picture_nothing_but_what_is_wrong_is_said(work: Path, tmp_path: Path) -> None:
    data = bytearray(encoded(Image.new("1", (8, 8))))
    data[16:24] = struct.pack(">II", 10_000, 10_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "large.png").write_bytes(data)
    done = puma("search", "index.npy", "--image", str(tmp_path / "large.png"), cwd=work)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "damaged image" in done.stderr


def test_the_readmes_python_does_what_the_commands_do(work: Path) -> None:
    readme = Path(__file__).parents[1] / "README.md"
    (code,) = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    check = """
import json, sys
from pathlib import Path
heavy = {"torch", "transformers", "onnx"} & set(sys.modules)
corpus = Path("corpus/pictures")
picture = sorted(corpus.iterdir())[0]
index = Index.open("index.npy")
records = index.records(range(len(index)))
(row,) = (n for n, one in enumerate(records) if Path(one.path).name == picture.name)
same = float(bundle.embed([picture])[0] @ index.vectors[row])
print(json.dumps([found.rows.tolist(), found.scores.tolist(), same, sorted(heavy)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code + check], cwd=work, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows, scores, same, heavy = json.loads(done.stdout)
    assert heavy == []
    assert same == pytest.approx(1, abs=1e-3)
    line = ("search", "index.npy", "a fox", "red heart", "--top", "5", "--json")
    answers = json.loads(puma(*line, cwd=work).stdout)
    assert [[hit["row"] for hit in one["hits"]] for one in answers] == rows
    found = [hit["score"] for one in answers for hit in one["hits"]]
    assert np.ravel(scores).tolist() == pytest.approx(found)


def test_a_search_imports_no_more_than_it_needs(work: Path) -> None:
    """Modules are most of the time until the first answer; `--like` needs no engine either."""
    for line, heavy in (
        (("index.npy", "a fox"), set()),
        (("index.npy", "--like", "0"), {"onnxruntime"}),
    ):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "puma_edge", "search", *line, "--json"],
            cwd=work, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        loaded = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines()}
        assert "puma_edge.find" in loaded
        unwanted = {"torch", "transformers", "onnx", "matplotlib", "rich.console", "puma_edge.data"}
        assert not loaded & (unwanted | heavy)


def test_search_prints_a_table_and_draws_a_sheet(work: Path) -> None:
    done = puma("search", "index.npy", "a fox", "--sheet", "hits.png", cwd=work)
    assert done.returncode == 0
    assert "score" in done.stdout
    with Image.open(work / "hits.png") as sheet:
        assert sheet.width > 600
        assert len(sheet.convert("RGB").getcolors(2**24) or []) > 1000


def test_other_precisions_warn_and_other_models_are_refused(work: Path, tmp_path: Path) -> None:
    done = puma("search", "index.npy", "a fox", "--precision", "fp32", cwd=work)
    assert done.returncode == 0
    assert "was made in int8" in done.stderr
    other = tmp_path / "other"
    shutil.copytree(work / "bundle", other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "model_id": "another"}))
    done = puma("search", "index.npy", "a fox", "--bundle", str(other), cwd=work)
    assert done.returncode == 1
    assert "was made with model" in done.stderr
