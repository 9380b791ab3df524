"""A folder that is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from puma_edge.errors import PumaError
from puma_edge.folders import replace_folder


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with replace_folder(target) as work:
        (work / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), replace_folder(target) as work:
        (work / "a").write_text(str(1 / 0))
    assert (target / "a").read_text() == "old"
    with replace_folder(target) as work:
        (work / "b").write_text("new")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PumaError, match="cannot write to"), replace_folder(tmp_path / "file" / "x"):
        pass
