"""Settings from a file and from the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from puma_edge.cli import COMMANDS
from puma_edge.config import ExportConfig, Gate, StageConfig, TrainConfig
from puma_edge.errors import UsageError
from puma_edge.settings_file import TABLES, read_config
from tests.commands import puma


def write(folder: Path, text: str) -> Path:
    """A settings file."""
    path = folder / "puma-edge.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_the_papers() -> None:
    config = TrainConfig()
    assert (config.stage1.batch, config.stage1.lr, config.stage1.first_layer_lr) == (
        288,
        2e-4,
        1e-4,
    )
    assert (config.stage2.batch, config.stage2.lr, config.stage2.lora_dropout) == (600, 3e-4, 0.1)
    for stage in (config.stage1, config.stage2):
        assert (stage.lora_r, stage.lora_alpha, stage.epochs) == (128, 256, 2.0)


def test_the_file_then_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nkeep_layers = 3\nseed = 5\n[train.stage1]\nlr = 1\n")
    config = read_config("train", TrainConfig, path, seed=7, model=None)
    assert (config.keep_layers, config.seed, config.model) == (3, 7, "sample")
    # Keys that are not given keep the stage's own defaults, not the dataclass's.
    assert (config.stage1.lr, config.stage1.first_layer_lr, config.stage1.batch) == (1.0, 1e-4, 288)


def test_other_defaults_hold_below_the_file(tmp_path: Path) -> None:
    recipe = TrainConfig(seed=3, stage1=StageConfig(batch=64, lora_r=16, max_steps=40))
    path = write(tmp_path, "[train]\nsave_steps = 7\n[train.stage1]\nmax_steps = 9\n")
    found = read_config("train", TrainConfig, path, recipe, seed=4)
    stage1 = replace(recipe.stage1, max_steps=9)
    assert found == replace(recipe, seed=4, save_steps=7, stage1=stage1)


def test_the_file_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, '[export]\ngate = "report"\n')
    monkeypatch.chdir(tmp_path)
    assert read_config("export", ExportConfig).gate is Gate.REPORT


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[train]\nkeep_layer = 3\n", "unknown setting 'keep_layer' in \\[train\\]"),
        ("[train.stage1]\nrate = 3\n", "unknown setting 'rate' in \\[train\\] stage1"),
        ("[train]\nkeep_layers = 'four'\n", "keep_layers: 'four' given, expected int"),
        ("[train]\nmatryoshka = [64, 'a']\n", "matryoshka: 'a' given, expected int"),
        ("[train]\nmatryoshka = 64\n", "matryoshka: 64 given, expected a list"),
        ("train = 3\n", "expected a table \\[train\\]"),
        ("[train]\nseed = true\n", "seed: True given, expected int"),
        ("[export]\ngate = 'no'\n", "expected one of: fail, report"),
        (
            "[trian]\nseed = 1\n",
            "unknown table 'trian' in .*puma-edge.toml; expected one of: bench",
        ),
        ("[train\n", "cannot be read as settings"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    table, cls = ("train", TrainConfig) if "train" in text else ("export", ExportConfig)
    with pytest.raises(UsageError, match=says):
        read_config(table, cls, path)


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_config("train", TrainConfig, tmp_path / "none.toml")


def test_every_command_has_a_table() -> None:
    assert tuple(COMMANDS) == TABLES


def test_a_table_stands_for_the_options_that_are_not_given(tmp_path: Path) -> None:
    write(tmp_path, '[embed]\nbundle = "elsewhere"\nengine = "ray"\n[info]\njson = true\n')
    (tmp_path / "corpus").mkdir()
    done = puma("embed", "corpus", cwd=tmp_path)
    assert done.returncode == 1
    assert "elsewhere" in done.stderr
    done = puma("embed", "corpus", "--bundle", "here", cwd=tmp_path)
    assert "elsewhere" not in done.stderr
    assert "here" in done.stderr


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[embed]\nbundel = 'b'\n", ("embed", "corpus"), "unknown setting 'bundel' in [embed]"),
        ("[embed]\nthreads = 'b'\n", ("embed", "corpus"), "'--threads'"),
        ("[serach]\ntop = 3\n", ("doctor",), "unknown table 'serach' in puma-edge.toml"),
    ],
)
def test_a_wrong_table_of_any_command_is_told(
    tmp_path: Path, text: str, line: tuple[str, ...], says: str
) -> None:
    write(tmp_path, text)
    (tmp_path / "corpus").mkdir()
    done = puma(*line, cwd=tmp_path)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
