"""Checkpoints of all families: saved, published, refused, trained on, and their identity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from puma_edge.backbones import Family, backbone_of, tower_of
from puma_edge.errors import PumaError
from puma_edge.identity import model_id
from puma_edge.inputs import Positions
from puma_edge.model import load, prune, ret_states, save
from puma_edge.shapes import SHAPES, Shape, shape_tower
from puma_edge.tower import Tower
from tests.checkpoints import checkpoint_of, mixed_batch
from tests.families import LAYERS


@pytest.mark.parametrize("family", list(Family))
def test_a_saved_checkpoint_opens_the_same(
    family: Family, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    cut = prune(checkpoint_of(family, tokenizer), (0, 1, 4))
    save(cut, tmp_path)
    opened = load(str(tmp_path))
    assert (opened.card, opened.tower, type(opened.model)) == (cut.card, cut.tower, type(cut.model))
    assert model_id(opened) == model_id(cut)
    batch = mixed_batch(cut.spec)
    with torch.no_grad():
        assert torch.equal(ret_states(opened.model, batch), ret_states(cut.model, batch))


@pytest.mark.parametrize("family", list(Family))
def test_a_published_checkpoint_opens(family: Family, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """With a head, without a card, as they lie on the hub."""
    from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

    whole = checkpoint_of(family, tokenizer)
    published = AutoModelForImageTextToText.from_config(whole.model.config).eval()
    published.model.load_state_dict(whole.model.state_dict())
    published.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    opened = load(str(tmp_path))
    backbone = backbone_of(family)
    assert (opened.card.limits, opened.card.prompt) == (backbone.limits, backbone.prompt)
    batch = mixed_batch(whole.spec)
    with torch.no_grad():
        assert torch.equal(ret_states(opened.model, batch), ret_states(whole.model, batch))


def edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | values), encoding="utf-8")


def test_what_cannot_be_opened_is_one_clear_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save(checkpoint_of(Family.QWEN3_VL, tokenizer), tmp_path)
    card = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["puma"]
    assert (card["positions"], card["norm"], card["pooling"]) == ("mrope", "final", "ret")
    for changed, reason in (
        ({"model_type": "qwen2"}, "is a qwen2; expected one of: qwen2_vl, qwen2_5_vl, qwen3_vl"),
        ({"puma": card | {"norm": "none"}}, "'none' is not a valid Norm"),
        ({"puma": card | {"positions": "2d"}}, "'2d' is not a valid Positions"),
    ):
        before = (tmp_path / "config.json").read_text(encoding="utf-8")
        edit(tmp_path, **changed)
        with pytest.raises(PumaError, match=reason) as caught:
            load(str(tmp_path))
        assert "\n" not in str(caught.value)
        (tmp_path / "config.json").write_text(before, encoding="utf-8")
    weights = checkpoint_of(Family.QWEN3_VL, tokenizer)
    del weights.model.language_model.layers[-1].mlp
    save(weights, tmp_path)
    with pytest.raises(PumaError, match=r"lacks 3 of its weights \(language_model\.layers\.4\.mlp"):
        load(str(tmp_path))


@pytest.mark.parametrize("family", list(Family))
def test_positions_norm_and_tower_are_part_of_the_identity(
    family: Family, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    whole = checkpoint_of(family, tokenizer)
    plain = replace(whole, card=replace(whole.card, positions=Positions.PLAIN))
    other: Any = "none"
    unnormed = replace(whole, card=replace(whole.card, norm=other))
    found = {model_id(one) for one in (whole, plain, unnormed)}
    assert len(found) == 3
    if family is not Family.QWEN2_VL:
        whole.model.config.model_type = Family.QWEN2_VL.value
        assert model_id(whole) not in found


@pytest.mark.parametrize("family", list(Family))
def test_adapters_train_on_remembered_image_tokens(family: Family, tokenizer: Tokenizer) -> None:
    from puma_edge.config import StageConfig
    from puma_edge.frozen_vision import FrozenVision
    from puma_edge.stages import add_lora

    checkpoint = checkpoint_of(family, tokenizer)
    batch, vision = mixed_batch(checkpoint.spec), FrozenVision()
    with torch.no_grad():
        expected = ret_states(checkpoint.model, batch)
    peft = add_lora(checkpoint, StageConfig(batch=2, lora_r=4, lora_alpha=8), seed=0).eval()
    for _ in range(2):
        states = ret_states(peft, batch, vision(peft, batch))
        assert torch.allclose(states, expected, atol=1e-4)
    torch.autograd.backward(states.pow(2).sum())
    trained = [values for values in peft.parameters() if values.requires_grad]
    # Of LoRA's two matrices the second starts at zero: only it has a gradient at first.
    assert sum(bool(values.grad.abs().max() > 0) for values in trained) == LAYERS * 7


@pytest.mark.parametrize(
    ("name", "parameters", "tower"),
    [
        ("qwen2-vl-2b", 2_208_985_600, Tower()),
        ("qwen2.5-vl-3b", 3_754_622_976, Tower(window=8)),
        (
            "qwen3-vl-2b",
            2_127_532_032,
            Tower(grid=48, features=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        ),
    ],
)
def test_shapes_have_the_published_sizes(name: str, parameters: int, tower: Tower) -> None:
    from puma_edge.shapes import _config

    shape: Shape = SHAPES[name]
    with torch.device("meta"):
        model = backbone_of(shape.family).model(_config(shape, shape.layers))
    # Token embeddings are shared with the head in all three: no head, no weight less.
    assert sum(values.numel() for values in model.parameters()) == parameters
    assert shape_tower(f"shape:{name}") == tower
    assert tower_of(model.config) == tower
