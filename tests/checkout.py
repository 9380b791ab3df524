"""The repository as a clone would have it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def project_files() -> list[Path]:
    """List what git has or would take, relative to the repository, links included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    names = {Path(name) for name in listed.split("\0") if name}
    return sorted(name for name in names if (ROOT / name).exists())


def copy_checkout(folder: Path) -> Path:
    """Copy them to a new folder, so that builds leave nothing behind here."""
    for name in project_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return folder


def build_wheel(checkout: Path, folder: Path) -> Path:
    """Build the wheel of a checkout with the setuptools that is here."""
    run_python(
        *("-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"),
        *("--no-build-isolation", "--wheel-dir", str(folder), str(checkout)),
    )
    (built,) = folder.glob("*.whl")
    return built


def run_python(*arguments: str, cwd: Path | None = None) -> str:
    """Run this Python; what it printed, or an AssertionError with what it complained of."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
