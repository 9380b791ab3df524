"""A folder that is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from puma_edge.errors import PumaError, UsageError
from puma_edge.folders import check_target, replace_folder


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


def test_a_folder_that_something_else_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos, bundle = Path("photos"), Path("bundle")
    for folder in (photos, bundle, Path("empty"), bundle / "model"):
        folder.mkdir()
    (photos / "wedding.jpg").write_text("")
    (photos / "manifest.json").write_text("")
    for name in ("manifest.json", "tokenizer.json"):
        (bundle / name).write_text("")
    marks = ("manifest.json", "tokenizer.json")
    for fine in (Path("new"), Path("empty"), bundle, bundle / "new"):
        check_target(fine, marks, [photos, Path("sample")])
    with pytest.raises(UsageError, match="has no tokenizer"):
        check_target(photos, marks)
    with pytest.raises(UsageError, match="has no manifest"):
        check_target(photos / "wedding.jpg", marks)
    for here in (Path("."), Path(".."), tmp_path, bundle / ".."):
        with pytest.raises(UsageError, match=r"would remove /"):
            check_target(here, marks)
    Path("link").symlink_to(bundle)
    for needed in (bundle, bundle / "model", Path("link")):
        with pytest.raises(UsageError, match=f"would remove {needed}"):
            check_target(bundle, marks, [needed])
