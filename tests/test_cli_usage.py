"""`--help` has examples, and bad input gets one line, the right exit code and no harm."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from puma_edge.sample import base_folder
from tests.commands import puma, refused


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
    (("export", "MODEL", "--data", "SMALL", "--out", "texts"), None, 2, "--out texts is there"),
    (("export", "MODEL", "--data", "SMALL", "--out", "."), None, 2, "--out . would remove"),
    (("export", "bundle", "--data", "SMALL"), None, 2, "--out bundle would remove bundle"),
    (("export", "bundle", "--trt", "--int8-trt"), None, 2, "--int8-trt changes nothing in bundle"),
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
    named = {"SMALL": str(small_data), "MODEL": str(base_folder())}
    arguments = [named.get(word, word) for word in line]
    done = puma(*arguments, cwd=tmp_path)
    assert says in refused(done, code)
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
