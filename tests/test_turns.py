"""The backends of a benchmark: how they are named, and one that cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from puma_edge.bundle import Bundle
from puma_edge.errors import PumaError
from puma_edge.serving import split_backend
from puma_edge.turns import run_turns
from tests.models import tiny_bundle


def test_backends_are_read_as_they_are_named() -> None:
    for name, parts in {
        "torch-fp32": ("torch", "fp32"),
        "torch-cuda-bf16": ("torch-cuda", "bf16"),
        "compile-cuda-bf16": ("compile-cuda", "bf16"),
        "ort-int8-trt": ("ort", "int8-trt"),
        "ort-cuda-fp16": ("ort-cuda", "fp16"),
        "trt-int8-trt": ("trt", "int8-trt"),
    }.items():
        assert split_backend(name) == parts
    with pytest.raises(PumaError, match="no backend 'npu-fp16'"):
        split_backend("npu-fp16")


@pytest.fixture
def bundle(tmp_path: Path, tokenizer: Tokenizer) -> Bundle:
    return tiny_bundle(tmp_path, tokenizer)


def test_a_backend_that_cannot_run_is_named_with_the_reason(
    bundle: Bundle,
) -> None:
    request = {
        "bundle": str(bundle.folder), "model": "", "threads": 1, "seconds": 0.01, "warm_up": 0.01,
        "runs": (2, 3), "cases": [],
    }  # fmt: skip
    told: list[tuple[int, int]] = []
    backends = ["ort-fp32", "trt-fp16"]
    turns = run_turns(request, backends, 2, lambda *at: told.append(at), optional=["trt-fp16"])
    assert [len(many) for many in turns.results.values()] == [2]
    assert list(turns.missing) == ["trt-fp16"]
    assert turns.missing["trt-fp16"]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(PumaError, match="trt-fp16 process failed"):
        run_turns(request, ["trt-fp16"], 1, lambda *_: None)
