"""A model's folder in words that transformers 4.57 and 5 both understand.

5 renamed a decoder's `rope_theta` and `rope_scaling` to `rope_parameters`, and the class of a plain
tokenizer. It reads the old names still; 4.57 does not know the new ones, and takes a default for
what it does not find: a wrong rotary base, and other embeddings without a word.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig

from puma_edge.errors import PumaError

IS_OLDER = int(transformers.__version__.split(".")[0]) < 5
TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def rope_settings(
    theta: float, sections: Sequence[int], *, interleaved: bool = False
) -> dict[str, Any]:
    """A decoder's rotary settings in the old names, for a configuration of either version.

    Args:
        theta: the base of the frequencies.
        sections: how many frequencies time, row and column have.
        interleaved: they are dealt out in turn, as in Qwen3-VL.
    """
    scaling: dict[str, Any] = {"rope_type": "default", "mrope_section": list(sections)}
    if interleaved:
        scaling["mrope_interleaved"] = True
    return {"rope_theta": theta, "rope_scaling": scaling}


def read_config(name: str) -> Any:
    """The configuration of a folder or a hub model, whichever version wrote it."""
    config = AutoConfig.from_pretrained(name)
    text = getattr(config, "text_config", None)
    if IS_OLDER and (rope := getattr(text, "rope_parameters", None)):
        for key, value in _old_names(rope).items():
            setattr(text, key, value)
    return config


def loading(config: Any) -> dict[str, Any]:
    """What `from_pretrained` needs besides, to find the weights of a published model."""
    # A Qwen3-VL without a head, in 4.57, does not look behind the name of one with a head.
    is_published = IS_OLDER and config.model_type == "qwen3_vl"
    return {"key_mapping": {r"^model\.": ""}} if is_published else {}


def check_names(config: Any) -> None:
    """Refuse a configuration that transformers read for itself, and read wrongly.

    Raises:
        PumaError: it says in new names what this transformers knows by old ones alone.
    """
    text = config.text_config
    rope = getattr(text, "rope_parameters", None)
    if not IS_OLDER or not rope:
        return
    found = {key: getattr(text, key, None) for key in _old_names(rope)}
    if found != _old_names(rope):
        raise PumaError(
            f"config.json has rope_parameters, and transformers {transformers.__version__} reads "
            f"rope_theta and rope_scaling, which say {found}; write the model's folder anew: "
            "puma-edge merge RUN --out merged/"
        )


def write_both(folder: Path) -> None:
    """Add the old names to what transformers wrote into a model's folder."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if rope := config["text_config"].get("rope_parameters"):
        config["text_config"] |= _old_names(rope)
        _write(path, config)
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        _write(path, settings | {"tokenizer_class": TOKENIZER_CLASS})


def _old_names(rope: dict[str, Any]) -> dict[str, Any]:
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
