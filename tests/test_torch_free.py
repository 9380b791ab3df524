"""A device: the package in an environment of its own without torch, and a bundle made elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.checkout import build_wheel, copy_checkout, run_python

CONSTRAINTS = "constraints.txt" if sys.version_info >= (3, 11) else "constraints-py310.txt"
WHAT_IS_HERE = """
from importlib.metadata import distributions
names = ("torch", "transformers", "peft", "optimum", "accelerate", "onnx", "onnxruntime")
here = {one.metadata["Name"] for one in distributions()}
print(*[name for name in names if name in here])
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with `puma-edge[cpu]` alone."""
    checkout = copy_checkout(tmp_path_factory.mktemp("checkout"))
    wheel = build_wheel(checkout, tmp_path_factory.mktemp("wheel"))
    environment = tmp_path_factory.mktemp("device") / "venv"
    run_python("-m", "venv", "--without-pip", str(environment))
    programs = environment / "bin"
    run_python(
        *("-m", "pip", "--disable-pip-version-check", "--python", str(programs / "python")),
        *("install", "--quiet", "--no-compile", "-c", str(checkout / CONSTRAINTS), f"{wheel}[cpu]"),
    )
    return programs


def run(program: Path, *arguments: str, cwd: Path | None = None) -> str:
    """Run a program outside this Python's environment; what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(program), *arguments], cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_plain_install_brings_no_training_stack(device: Path) -> None:
    assert run(device / "python", "-c", WHAT_IS_HERE).split() == ["onnxruntime"]


def test_embed_and_search_from_a_bundle(
    device: Path, sample_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    shutil.copy(photograph, corpus / "portrait.jpg")
    (corpus / "fox.txt").write_text("a fox", encoding="utf-8")
    (corpus / "pizza.txt").write_text("a slice of pizza", encoding="utf-8")
    bundle = ("--bundle", str(sample_bundle))

    run(device / "puma-edge", "embed", "corpus", *bundle, "--out", "index.npy", cwd=tmp_path)
    vectors = np.load(tmp_path / "index.npy")
    assert len(vectors) == 3
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)

    query = ("search", "index.npy", "a fox", *bundle, "--top", "5", "--json")
    (answer,) = json.loads(run(device / "puma-edge", *query, cwd=tmp_path))
    assert {hit["path"] for hit in answer["hits"]} == {"portrait.jpg", "fox.txt", "pizza.txt"}
    scores = [hit["score"] for hit in answer["hits"]]
    assert scores == sorted(scores, reverse=True)
