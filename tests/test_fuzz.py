"""Damaged files of every kind, in a process of their own: a crash would end it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.checkout import ROOT, run_python


@pytest.mark.parametrize("seconds", ["2", pytest.param("60", marks=pytest.mark.long)])
def test_damaged_files_neither_crash_nor_vanish(tmp_path: Path, seconds: str) -> None:
    said = run_python("-m", "tests.fuzz", str(tmp_path), "--seconds", seconds, cwd=ROOT)
    assert re.search(r"folders of \d+ damaged files: none crashed, none lost", said)
