"""`puma-edge embed` on real files: every one has a row, or a line that says why not."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.commands import puma


def test_every_document_has_a_row(work: Path) -> None:
    corpus = work / "corpus"
    captions = {path.with_suffix("") for path in corpus.glob("captioned/*.txt")}
    files = [path for path in corpus.rglob("*") if path.is_file()]
    documents = len(files) - len(captions)
    vectors = np.load(work / "index.npy")
    assert vectors.shape[0] == documents
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


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
