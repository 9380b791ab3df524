"""The page on scale shows what its script prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def printed(*options: str) -> list[str]:
    """Run the script; its lines."""
    line = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), *options]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return [text for text in done.stdout.splitlines() if text]


def test_the_page_shows_the_scripts_tables() -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").splitlines()
    lines = printed()
    assert len(lines) == 18
    assert [text for text in page if text in lines and not text.startswith("|---")] == [
        text for text in lines if not text.startswith("|---")
    ]


def test_figures_of_ones_own() -> None:
    """By hand: 3M rows of 100 numbers, 0.864 s a text and 8.64 s a picture, 2 an hour."""
    own = ("--rows", "3e6", "--dim", "100", "--table-bytes", "10", "--price", "2")
    times = ("--text-seconds", "0.864", "--image-seconds", "8.64", "--int8-seconds", "1e-6")
    serve = ("--machine-memory", "0.5", "--copies", "1", "--binary-seconds", "1e-7")
    text = printed(*own, *times, *serve)
    assert text[2] == "| 3M | 1.2 GB | 600 MB | 312 MB | 37.5 MB | 30 MB |"
    # 1.2 GB x 1.5 = 1.8; 3M x (100 + 136) = 708 MB; 3M x 100 / 16 = 18.75 MB; of 0.375 GB each
    assert text[5] == "| 3M | 3 s | 0.3 s | 1.8 GB | 5 | 708 MB | 2 | 18.8 MB | 1 |"
    assert text[8] == "| 3M | 30 days | 300 days | 1,440 | 14,400 |"
