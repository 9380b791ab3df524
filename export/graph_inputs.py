"""What each graph of a bundle takes, for its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from puma_edge.calibration.onnx_files import load_model
from puma_edge.feeds import makers
from puma_edge.tower import Tower


def graph_inputs(folder: Path, tower: Tower) -> dict[str, dict[str, Any]]:
    """Graph -> input -> its type, its shape and the function of `puma_edge.feeds` that makes it.

    Read from the fp32 graphs in `folder`; those of every precision take the same.
    """
    return {
        part: {
            str(value.name): {
                "dtype": str(value.dtype).lower(),
                "shape": [
                    size if isinstance(size, int) else str(size) for size in value.shape or ()
                ],
                "feed": feeds[str(value.name)],
            }
            for value in load_model(folder / f"{part}.fp32.onnx").graph.inputs
        }
        for part, feeds in makers(tower).items()
    }
