"""The command line as a process, and how it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def puma(
    *arguments: str, cwd: Path, timeout: int = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `puma-edge` in a folder, for at most `timeout` seconds."""
    return subprocess.run(
        [sys.executable, "-m", "puma_edge", *arguments],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that a command which failed says; nothing is printed, no traceback shown."""
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("puma-edge: ")]
    return line
