"""A run's folder: whose it is, and when it is gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from puma_edge.config import TrainConfig
from puma_edge.errors import PumaError
from puma_edge.run_folder import METRICS, SETTINGS, open_run


def start(config: TrainConfig) -> bool:
    """Whether an earlier process worked on this run."""
    with open_run(config) as run:
        return run.resumed


def test_the_same_settings_go_on_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(matryoshka=(64,))
    assert not start(config)
    assert start(config)  # found by its settings
    named = replace(config, out="run")
    assert not start(named)
    assert start(named)
    other = replace(named, stage1=replace(named.stage1, lr=1.0), seed=3)
    with pytest.raises(PumaError, match=r"\(stage1\.lr was 0\.0002, is 1\.0, seed was 0, is 3\)"):
        start(other)
    assert start(named)
    (tmp_path / "run" / METRICS).write_text("{}")
    with pytest.raises(PumaError, match="holds a finished run"):
        start(named)


def test_a_run_begun_before_a_setting_was_there_goes_on(tmp_path: Path) -> None:
    config = TrainConfig(out=str(tmp_path / "run"))
    start(config)
    path = tmp_path / "run" / SETTINGS
    old = json.loads(path.read_text())
    del old["weights"], old["stage1"]["recombine"]
    path.write_text(json.dumps(old))
    assert start(config)
    path.write_text(json.dumps(old))
    recombined = replace(config.stage1, recombine=True)
    with pytest.raises(PumaError, match=r"\(stage1\.recombine was False, is True\)"):
        start(replace(config, stage1=recombined))
    assert json.loads(path.read_text()) == old  # refused: nothing was written
    assert start(config)
    assert "weights" in json.loads(path.read_text())


@pytest.mark.parametrize("content", ["", "{", "[]", "7"])
def test_damaged_settings_are_told(tmp_path: Path, content: str) -> None:
    (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(PumaError, match=r"settings\.json is damaged; choose another --out"):
        start(TrainConfig(out=str(tmp_path)))
    assert (tmp_path / SETTINGS).read_text() == content
