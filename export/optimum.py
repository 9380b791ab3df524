"""A merged model in Optimum: its exporter is told of our families, and its files are fed.

`optimum-cli export onnx` calls `register` by itself, through `puma_edge/optimum_plugin`; whoever
calls Optimum's exporter from Python calls it first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoConfig

from puma_edge.backbones import Family, tower_of
from puma_edge.card import Card
from puma_edge.errors import PumaError, require
from puma_edge.feeds import Feeds, text_feeds, vision_feeds
from puma_edge.inputs import Batch, Float32, InputSpec
from puma_edge.model import add_special_tokens
from puma_edge.prompts import PromptTokenizer

TASK = "feature-extraction"


def register() -> None:
    """Make Optimum's TasksManager know merged models of every family.

    Raises:
        MissingExtraError: Optimum's ONNX exporter is not installed.
    """
    require("optimum.exporters.onnx", "optimum")
    from optimum.exporters.tasks import TasksManager

    from puma_edge.export.optimum_config import PumaOnnxConfig

    known = TasksManager.create_register("onnx")
    for family in Family:
        known(family.value, TASK)(PumaOnnxConfig)


def open_spec(folder: str | Path) -> InputSpec:
    """How items become arrays, for a folder that Optimum's exporter wrote.

    Raises:
        PumaError: it lacks the card or the tokenizer of a merged model.
    """
    config = AutoConfig.from_pretrained(folder)
    path = Path(folder) / "tokenizer.json"
    if not getattr(config, "puma", None) or not path.is_file():
        raise PumaError(
            f"{folder} has no card of puma-edge in its config.json, or no tokenizer.json; expected "
            "what optimum-cli export onnx wrote of a merged model"
        )
    card = Card.from_dict(config.puma)
    tokenizer = add_special_tokens(Tokenizer.from_file(str(path)), config.text_config.vocab_size)
    prompts = PromptTokenizer(tokenizer, card.prompt)
    return InputSpec(prompts, card.limits, card.positions, tower_of(config))


def feeds(batch: Batch, image_tokens: Float32 | None = None) -> Feeds:
    """What a file takes of a batch.

    Args:
        batch: of any items.
        image_tokens: what the `vision` file gave for it, for the `text` file; None for the file
            that holds both graphs.
    """
    if image_tokens is not None:
        return text_feeds(batch, image_tokens)
    taken = text_feeds(batch, np.zeros((0, 0), np.float32)) | vision_feeds(batch)
    del taken["image_tokens"]
    return taken
