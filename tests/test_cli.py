"""The commands as a person types them, on real files; and what bad input gets."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import puma

TINY = """
[train]
data = "DATA"
keep_layers = 2
[train.stage1]
batch = 16
max_steps = 2
lora_r = 4
lora_alpha = 8
[train.stage2]
batch = 16
max_steps = 2
lora_r = 4
lora_alpha = 8
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, sample_bundle: Path, photograph: Path) -> Path:
    """A folder with a bundle, a corpus of real files, and an index of it."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(sample_bundle, folder / "bundle")
    assert puma("sample", "corpus", cwd=folder).returncode == 0
    with Image.open(photograph) as picture:
        picture.resize((1733, 411)).save(folder / "corpus" / "wide screenshot.png")
        picture.convert("CMYK").save(folder / "corpus" / "scan.tif")
        picture.convert("L").rotate(90, expand=True).save(folder / "corpus" / "DSC_0001.JPG")
    done = puma("embed", "corpus", "--out", "index.npy", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_document_has_a_row(work: Path) -> None:
    corpus = work / "corpus"
    captions = {path.with_suffix("") for path in corpus.glob("captioned/*.txt")}
    files = [path for path in corpus.rglob("*") if path.is_file()]
    documents = len(files) - len(captions)
    vectors = np.load(work / "index.npy")
    assert vectors.shape[0] == documents
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


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


def test_info_check_eval_and_doctor(work: Path, small_data: Path) -> None:
    about = json.loads(puma("info", "bundle", "--json", cwd=work).stdout)
    assert (about["kind"], about["layers"]) == ("bundle", "2 of 8")
    index = json.loads(puma("info", "index.npy", "--json", cwd=work).stdout)
    assert index["model_id"] == about["model"]
    checked = json.loads(puma("check", "bundle", "--json", cwd=work).stdout)
    assert [row["precision"] for row in checked] == ["fp32", "fp16", "int8", "int8-trt"]
    assert checked[0]["passed"]
    assert checked[0]["max_difference"] < 1e-4
    precisions = ("bundle@fp32", "bundle@int8")
    done = puma(
        "eval", *precisions, "--data", str(small_data), "--plot", "recall.png", "--json", cwd=work
    )
    scores = json.loads(done.stdout)
    assert set(scores) == set(precisions)
    for score in scores.values():
        assert [row["task"] for row in score["rows"]] == [0, 1, 2, 3, 4, 6, 7, 8]
        assert score["interval"][0] <= score["mean"] <= score["interval"][1]
    change = scores["bundle@int8"]["mean"] - scores["bundle@fp32"]["mean"]
    assert scores["bundle@int8"]["difference"] == pytest.approx(change, abs=1e-6)
    assert (work / "recall.png").stat().st_size > 5_000
    done = puma("eval", "bundle@int9", "--data", str(small_data), cwd=work)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no precision 'int9'" in done.stderr
    assert "onnxruntime" in json.loads(puma("doctor", "--json", cwd=work).stdout)


def test_bench_compares_four_backends(work: Path) -> None:
    done = puma("bench", "--rounds", "1", "--seconds", "0.02", cwd=work)
    assert done.returncode == 0, done.stderr
    report = json.loads((work / "bench.json").read_text())
    assert list(report["peak_bytes"]) == ["torch-fp32", "torch-bf16", "ort-fp32", "ort-int8"]
    fp32 = [row for row in report["rows"] if row["backend"] == "ort-fp32"]
    assert len(fp32) == 4
    assert all(row["cosine"] > 0.9999 and row["runs"] >= 3 for row in fp32)
    assert all(row["p99_ms"] >= row["median_ms"] > 0 for row in report["rows"])
    assert (work / "bench.png").stat().st_size > 10_000


def test_train_merge_and_export_the_newest_run(tmp_path: Path, small_data: Path) -> None:
    (tmp_path / "puma-edge.toml").write_text(TINY.replace("DATA", str(small_data)))
    done = puma("train", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report["recall"]) == {"teacher", "cut, untrained", "student"}
    run = tmp_path / report["run"]
    assert {path.name for path in run.iterdir()} >= {
        *("stage1", "merged1", "stage2", "metrics.json", "loss.png")
    }
    assert puma("merge", "--out", "merged", cwd=tmp_path).returncode == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    card = (tmp_path / "merged" / "README.md").read_text()
    student = report["recall"]["student"]["mean"]
    assert f"| {student:.3f} |" in card.split("this model")[1].splitlines()[0]
    assert "2 of 8 decoder layers" in card
    done = puma("export", "--trt", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "TensorRT" in done.stderr
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["kept_layers"] == [0, 1]
    assert manifest["gate"] == "passed"
    assert manifest["parity"]["fp32"]["max_difference"] < 1e-4


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, small_data: Path) -> None:
    settings = TINY.replace("DATA", str(small_data)).replace("max_steps = 2", "max_steps = 6")
    settings = settings.replace("[train]", "[train]\nsave_steps = 1\nevaluate = false")
    (tmp_path / "puma-edge.toml").write_text(settings)
    command = [sys.executable, "-m", "puma_edge", "train"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 200
        while not list(tmp_path.glob("runs/*/stage1/checkpoint-*/complete")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.kill()
    assert not list(tmp_path.glob("runs/*/metrics.json"))
    done = puma("train", "--json", "--seed", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr  # other settings: another run
    done = puma("train", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on with runs/" in done.stderr
    first, second = sorted(path.parent for path in tmp_path.glob("runs/*/metrics.json"))
    assert json.loads(done.stdout)["run"] == str(first.relative_to(tmp_path))
    for stage in ("stage1", "stage2"):
        assert len(json.loads((first / stage / "log.json").read_text())) == 6
        assert not list(first.glob(f"{stage}/checkpoint-*"))
    assert not list(second.glob("lock"))


@pytest.mark.parametrize(("left_out", "stages"), [(1, {"stage2"}), (2, {"stage1", "merged1"})])
def test_a_stage_can_be_left_out(
    tmp_path: Path, small_data: Path, left_out: int, stages: set[str]
) -> None:
    settings = TINY.replace("DATA", str(small_data)).replace("[train]", "[train]\nevaluate = false")
    table = f"[train.stage{left_out}]"
    (tmp_path / "puma-edge.toml").write_text(settings.replace(table, f"{table}\nepochs = 0"))
    done = puma("train", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == stages | {"merged", "loss.png", "metrics.json", "settings.json"}
    assert (tmp_path / "run" / "merged" / "model.safetensors").is_file()


def test_two_ranks_train_as_one(tmp_path: Path, small_data: Path) -> None:
    settings = TINY.replace("DATA", str(small_data)).replace("max_steps = 2", "max_steps = 4")
    settings = settings.replace("lora_alpha = 8", "lora_alpha = 8\nlora_dropout = 0.0")
    (tmp_path / "puma-edge.toml").write_text(
        settings.replace("[train]", "[train]\nevaluate = false")
    )
    assert puma("train", "--out", "one", cwd=tmp_path).returncode == 0
    ranks = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "puma_edge", "train")
    done = subprocess.run(
        [sys.executable, *ranks, "--out", "two", "--json"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == "two"  # told once, by the first rank
    for stage in ("stage1", "stage2"):
        one, two = (
            [row["loss"] for row in json.loads((tmp_path / run / stage / "log.json").read_text())]
            for run in ("one", "two")
        )
        assert len(one) == 4
        assert two == pytest.approx(one, rel=1e-3)


def test_broken_files_are_quarantined_with_exit_code_3(work: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "fox.txt").write_text("a fox")
    (corpus / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (corpus / "latin.txt").write_bytes("Füchse".encode("latin-1"))
    (corpus / "rows.jsonl").write_text('{"text": "a dog"}\nno json\n')
    bundle = str(work / "bundle")
    done = puma("embed", "corpus", "--bundle", bundle, "--json", cwd=tmp_path)
    assert done.returncode == 3
    counts = json.loads(done.stdout)
    assert (counts["seen"], counts["embedded"], counts["quarantined"]) == (5, 2, 3)
    lines = (tmp_path / "index.quarantine.jsonl").read_text().splitlines()
    reasons = {row["path"]: row["reason"] for row in map(json.loads, lines)}
    assert set(reasons) == {"broken.jpg", "latin.txt", "rows.jsonl#2"}
    assert all(reasons.values())


def change_a_byte(folder: Path) -> None:
    """Flip a bit of the INT8 text graph."""
    path = folder / "bundle" / "text.int8.onnx"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


def other_version(folder: Path) -> None:
    """Say that the bundle is of a later format."""
    path = folder / "bundle" / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))


BAD = [
    (("train", "--data", "nowhere"), None, 1, "no data folder at nowhere"),
    (("train", "--data", "empty"), None, 1, "holds no M-BEIR data"),
    (("train", "--model", "no/model", "--data", "empty"), None, 1, "M-BEIR"),
    (("train", "--model", "no/model", "--data", "SMALL"), None, 1, "no model at 'no/model'"),
    (("train", "--keep-layers", "9", "--data", "SMALL"), None, 2, "give 1 to 8"),
    (("train", "--keep-layers", "-1", "--data", "SMALL"), None, 2, "give 1 to 8"),
    (("train", "--layers", "0,9", "--data", "SMALL"), None, 2, "has layers 0 to 7"),
    (("train", "--layers", "0-3", "--data", "SMALL"), None, 2, "whole numbers with commas"),
    (("export", "shape:qwen3-vl-2b", "--layers", "0,1,27"), None, 2, "(DeepStack)"),
    (("train", "--out", "file/run", "--data", "SMALL"), None, 1, "cannot write"),
    (("export",), None, 1, "no finished run"),
    (("export", "shape:none"), None, 2, "unknown shape"),
    (("export", "empty", "--data", "SMALL"), None, 1, "no config.json"),
    (("embed", "nowhere"), None, 1, "nowhere"),
    (("embed", "empty"), None, 1, "holds no image and no text"),
    (("embed", "texts", "--bundle", "empty"), None, 1, "is no bundle"),
    (("embed", "texts"), change_a_byte, 1, "not the file that was exported"),
    (("embed", "texts"), other_version, 1, "format version 2"),
    (("embed", "texts", "--out", "index.txt"), None, 2, "does not end in .npy"),
    (("embed", "texts", "--out", "file/index.npy"), None, 1, "file"),
    (("embed", "texts", "--dim", "100000"), None, 2, "dimensions asked for"),
    (("embed", "texts", "--threads", "0"), None, 2, "give 1 or more"),
    (("embed", "texts", "--actors", "2"), None, 2, "go with --engine ray"),
    (("search", "nowhere.npy", "a fox"), None, 1, "there is no index at"),
    (("search", "index.npy"), None, 2, "nothing to search for"),
    (("search", "index.npy", "--image", "nowhere.jpg"), None, 1, "nowhere.jpg"),
    (("bench", "--bundle", "empty"), None, 1, "is no bundle"),
    (("bench", "--only", "2 images"), None, 2, "no case '2 images'; expected one of: 1 text"),
    (("info", "empty"), None, 1, "is no bundle, no index"),
    (("sample", "texts"), None, 2, "is not empty"),
    (("eval", "bundle", "--data", "SMALL", "--split", "dev"), None, 2, "--split dev"),
]


@pytest.mark.parametrize(("line", "harm", "code", "says"), BAD)
def test_bad_input_is_one_line(
    line: tuple[str, ...],
    harm: Callable[[Path], None] | None,
    code: int,
    says: str,
    work: Path,
    tmp_path: Path,
    small_data: Path,
) -> None:
    """No traceback, the right exit code, and what was there is still there."""
    shutil.copytree(work / "bundle", tmp_path / "bundle")
    for path in work.glob("index.*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "fox.txt").write_text("a fox")
    if harm is not None:
        harm(tmp_path)
    before = snapshot(tmp_path)
    arguments = [str(small_data) if word == "SMALL" else word for word in line]
    done = puma(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    errors = [text for text in done.stderr.splitlines() if text.startswith("puma-edge: ")]
    assert len(errors) == 1
    assert says in errors[0]
    after = snapshot(tmp_path)
    assert {name: after.get(name) for name in before} == before


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {
        os.path.relpath(path, folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_help_has_examples() -> None:
    for command in (
        "sample",
        "train",
        "export",
        "embed",
        "search",
        "convert",
        "push",
        "bench",
        "eval",
        "check",
    ):
        done = puma(command, "--help", cwd=Path.cwd(), COLUMNS="200")
        assert done.returncode == 0
        assert f"puma-edge {command}" in done.stdout
        assert "Example" in done.stdout


def test_ctrl_c_keeps_what_is_done_and_names_the_line_that_goes_on(
    work: Path, tmp_path: Path
) -> None:
    count = 20_000  # seconds of work after the first shard, also on a fast machine
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(count):
        (corpus / f"{number}.txt").write_text(f"text number {number} of very many")
    # One thread: the other core is free to send the signal.
    line = ("embed", "corpus", "--bundle", str(work / "bundle"), "--out", "index.npy")
    line = (*line, "--threads", "1")
    with subprocess.Popen(
        [sys.executable, "-m", "puma_edge", *line],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what goes to the background with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if f"to embed: {count} different items" in line)
        assert re.search(r"0\.\d MB, about \d+ (s|minutes)", said)
        # Stopped when the first shard is there.
        while not list(tmp_path.glob("index.npy.partial/*.npy")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=120)
    assert process.returncode == 130, rest
    kept = re.search(rf"(\d+) of {count} items are done and kept", rest)
    assert kept is not None, rest
    assert f"puma-edge {' '.join(line)}" in rest
    done = puma(*line, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["embedded"] == count
    assert report["resumed"] >= max(1, int(kept[1]))
    assert f"{report['resumed']} are there from a run before" in done.stderr


def test_update_keeps_rows_and_equals_a_full_run(work: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    files = [
        path for path in sorted((work / "corpus").rglob("*.*")) if path.parent.name != "captioned"
    ]
    for suffix in (".webp", ".txt"):
        for path in [path for path in files if path.suffix == suffix][:30]:
            shutil.copy(path, corpus / path.name)
    line = ("embed", "corpus", "--bundle", str(work / "bundle"), "--json")
    assert puma(*line, "--out", "index.npy", cwd=tmp_path).returncode == 0
    pictures = sorted(corpus.rglob("*.webp"))
    assert len(pictures) > 2
    pictures[0].unlink()
    shutil.copy(pictures[1], corpus / "again.webp")
    (corpus / "fresh.txt").write_text("something that was not there")
    done = puma(*line, "--out", "index.npy", "--update", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    changes = report["changes"]
    assert (changes["new"], changes["changed"], changes["removed"]) == (2, 0, 1)
    assert report["reused"] == report["embedded"] - 1
    assert puma(*line, "--out", "whole.npy", cwd=tmp_path).returncode == 0
    rows, whole = np.load(tmp_path / "index.npy"), np.load(tmp_path / "whole.npy")
    assert (rows * whole).sum(1).min() >= 0.9999
