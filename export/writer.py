"""A torch module as an ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from puma_edge.calibration.onnx_files import save_model


def write_graph(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    dynamic: dict[str, dict[int, Any]],
    output: str,
    path: Path,
) -> None:
    """Export a module to ONNX at opset 18 and write it.

    Args:
        graph: the module.
        inputs: example inputs by name, no size of a free axis being 0 or 1.
        dynamic: the free axes of each input.
        output: the output's name.
        path: where to write; see `save_model`.
    """
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=dynamic,
            opset_version=18,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    save_model(program.model, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on torchvision and on shared axes from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
