"""Our graphs for Optimum, which knows no Qwen2-VL: what `optimum-cli export onnx` writes of one.

Optimum 2.1 traces a model's `forward` with PyTorch's older exporter. Traced are the modules that
`puma_edge.export.graphs` exports; they take their sizes from their inputs, so that this exporter,
too, leaves the axes free. What Optimum compares the file with is transformers' own model, on
inputs of other sizes than those that were traced.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from optimum.exporters.onnx.base import OnnxConfig
from optimum.utils import NormalizedConfig
from torch import Tensor
from torch.nn import functional

from puma_edge.backbones import Model, tower_of
from puma_edge.errors import PumaError
from puma_edge.export.graphs import check_model
from puma_edge.export.optimum_graphs import AXES, Variant, input_names, make_graph
from puma_edge.feeds import Feeds, text_feeds, vision_feeds
from puma_edge.images import Patches, PixelLimits
from puma_edge.inputs import Batch, Encoded, collate, rope_positions
from puma_edge.model import image_tokens, ret_states
from puma_edge.spellings import check_names

_GRAPH = "puma_edge_graph"  # under this name it is a part of the model while it is traced


class PumaOnnxConfig(OnnxConfig):  # type: ignore[misc]
    """How Optimum exports a merged model; `VARIANTS` says what there is."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    ATOL_FOR_VALIDATION = 1e-4
    DEFAULT_VARIANT = Variant.WHOLE.value
    VARIANTS = {  # noqa: RUF012 - as Optimum declares it
        Variant.WHOLE.value: "words and pictures in one file, for ORTModelForCustomTasks.",
        Variant.VISION.value: "pictures to image tokens, for ORTModelForCustomTasks.",
        Variant.TEXT.value: "words and image tokens to embeddings, for ORTModelForCustomTasks.",
        Variant.WORDS.value: "words to embeddings, for ORTModelForFeatureExtraction.",
    }

    def __init__(self, config: Any, task: str = "feature-extraction", **given: Any) -> None:
        """Take a model's configuration.

        Raises:
            PumaError: no checkpoint of ours, one that this transformers misreads, or half
                precision was asked for.
        """
        if not getattr(config, "puma", None):
            raise PumaError(
                f"this {config.model_type} has no card of puma-edge in its config.json; expected a "
                "merged model: puma-edge merge RUN --out merged/"
            )
        check_names(config)
        super().__init__(config, task=task, **given)
        if self.float_dtype != "fp32":
            raise PumaError(
                f"{self.float_dtype} was asked for, and Optimum's export is fp32 alone; for fp16 "
                "and INT8, checked against this model: puma-edge export"
            )
        self._tower = tower_of(config)
        self._merged = int(config.vision_config.spatial_merge_size**2)  # patches of a token
        self._drawn = 0
        self._batch: Batch | None = None
        self._tokens: NDArray[np.float32] = np.zeros((0, 0), np.float32)

    @property
    def _kind(self) -> Variant:
        return Variant(self.variant)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Input -> free axis -> its name."""
        return {name: AXES[name] for name in input_names(self._kind, self._tower)}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """Output -> free axis -> its name, from which Optimum works out the size of a buffer."""
        match self._kind:
            case Variant.VISION:
                return {"image_tokens": {0: f"images * patches // {self._merged}"}}
            case Variant.WORDS:
                return {"last_hidden_state": {0: "batch"}}  # the only name that class looks for
            case Variant.WHOLE | Variant.TEXT:
                return {"sentence_embedding": {0: "batch"}}

    def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Any]:
        """Random inputs; each call draws other sizes than the last, whatever `shapes` says.

        So a size that the exporter fixed shows when Optimum validates the file.
        """
        self._drawn += 1
        self._batch = batch = draw_batch(self._config, self._kind, self._drawn)
        width = self._config.text_config.hidden_size * (1 + self._tower.features)
        rows = batch.patches.shape[0] * batch.patches.shape[1] // self._merged
        self._tokens = np.random.default_rng(0).standard_normal((rows, width), np.float32)
        feeds: Feeds = text_feeds(batch, self._tokens)
        if len(batch.n_patches):
            feeds |= vision_feeds(batch)
        chosen = {name: feeds[name] for name in self.inputs}
        if framework == "np":
            return chosen
        return {name: torch.from_numpy(values) for name, values in chosen.items()}

    @contextmanager
    def patch_model_for_export(
        self, model: Any, model_kwargs: dict[str, Any] | None = None
    ) -> Iterator[None]:
        """While it lasts, tracing the model traces our graph; calling it gives its own results."""
        check_model(model)
        (output,) = self.outputs
        graph = make_graph(self._kind, model).eval()

        def forward(*values: Tensor, **named: Tensor) -> dict[str, Tensor]:
            if torch.onnx.is_in_onnx_export():
                return {output: graph(*values, **named)}
            return {output: self._expected(model)}

        names = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in self.inputs
        ]
        forward.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
        model.add_module(_GRAPH, graph)  # its weights are named in the file
        model.forward = forward
        try:
            yield
        finally:
            del model.forward
            delattr(model, _GRAPH)

    def _expected(self, model: Model) -> Tensor:
        """What transformers' own modelling code gives for the inputs that were drawn last."""
        batch = self._batch
        assert batch is not None
        match self._kind:
            case Variant.VISION:
                return image_tokens(model, batch)
            case Variant.TEXT:
                places = np.arange(batch.patches.shape[1] // self._merged)
                real = places < batch.n_patches[:, None] // self._merged
                states = ret_states(model, batch, torch.from_numpy(self._tokens[real.ravel()]))
            case Variant.WHOLE | Variant.WORDS:
                states = ret_states(model, batch)
        return functional.normalize(states, dim=-1)


def draw_batch(config: Any, variant: Variant, number: int) -> Batch:
    """Two random items, longer and with larger pictures for a larger number.

    Their pictures have different sizes; for the vision graph, which says nothing of the places
    behind a smaller one, as many patches in different shapes.
    """
    rows, columns = 2 * (1 + number), 2 * (2 + number)
    sizes = [(rows, columns), (columns, rows), (2, rows * columns // 2)]
    if variant is not Variant.VISION:
        sizes[1:] = [(4, 2 * number), (2, 4)]
    if variant is Variant.WORDS:
        sizes = []
    limits = PixelLimits(patch_size=config.vision_config.patch_size)
    items = [
        _item(config, 5 + number, sizes[:1], number),
        _item(config, 3 + 2 * number, sizes[1:], number + 1),
    ]
    return collate(items, 0, limits, tower_of(config))


def _item(config: Any, words: int, sizes: list[tuple[int, int]], seed: int) -> Encoded:
    rng = np.random.default_rng(seed)
    place, merge = config.image_token_id, config.vision_config.spatial_merge_size
    other = [one for one in rng.integers(0, config.text_config.vocab_size, words) if one != place]
    ids = np.asarray(
        [0, *(place for rows, columns in sizes for _ in range(rows * columns // merge**2)), *other],
        np.int64,
    )
    depth = 3 * config.vision_config.patch_size**2
    pictures = tuple(
        Patches(rng.integers(0, 256, (rows * columns, depth)).astype(np.uint8), rows, columns)
        for rows, columns in sizes
    )
    is_image = ids == place
    positions = rope_positions(is_image, sizes, merge)
    return Encoded(ids, positions, pictures, np.flatnonzero(is_image))
