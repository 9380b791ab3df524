"""`puma-edge train`, and what goes on from a run: merge and export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from puma_edge.errors import UsageError
from puma_edge.merge import merge_run
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
    merge_run(run, tmp_path / "merged")  # over what it wrote itself
    with pytest.raises(UsageError, match="would remove"):
        merge_run(run, run / "merged")
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


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "training over FSDP is not supported"),
        ({"SETTINGS": "device_batch = -1"}, "device_batch = -1"),
        ({"SETTINGS": 'report_to = "no_such_reporter"'}, "no_such_reporter is not installed"),
        ({"STAGE1": "recombine = true"}, "labels = 0 and text_only = false"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    tmp_path: Path, small_data: Path, given: dict[str, str], says: str
) -> None:
    more = f"[train]\nevaluate = false\n{given.pop('SETTINGS', '')}"
    settings = TINY.replace("DATA", str(small_data)).replace("[train]", more)
    stage1 = f"[train.stage1]\n{given.pop('STAGE1', '')}"
    (tmp_path / "puma-edge.toml").write_text(settings.replace("[train.stage1]", stage1))
    done = puma("train", "--out", "run", cwd=tmp_path, **given)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert says in done.stderr.splitlines()[-1]


def test_weights_in_half_the_bytes_train_too(tmp_path: Path, small_data: Path) -> None:
    more = '[train]\nevaluate = false\nweights = "bfloat16"'
    settings = TINY.replace("DATA", str(small_data)).replace("[train]", more, 1)
    unlabelled = "text_only = false\nrecombine = true\nlabels = 0.0\nstates = 1.0"
    settings = settings.replace("[train.stage1]", f"[train.stage1]\n{unlabelled}")
    (tmp_path / "puma-edge.toml").write_text(settings)
    done = puma("train", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for stage in ("stage1", "stage2"):
        log = json.loads((tmp_path / "run" / stage / "log.json").read_text())
        assert all(0 < row["loss"] < 20 and row["grad_norm"] > 0 for row in log)
    merged = load_file(tmp_path / "run" / "merged" / "model.safetensors")
    assert {str(values.dtype) for values in merged.values()} == {"torch.bfloat16"}


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
