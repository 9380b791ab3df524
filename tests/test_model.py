"""Pruning, the state at [RET], checkpoints on disk, merging."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from puma_edge.config import StageConfig
from puma_edge.errors import PumaError, UsageError
from puma_edge.inputs import Batch, Item
from puma_edge.merge import merge
from puma_edge.model import Checkpoint, choose_layers, load, prune, ret_states, save
from puma_edge.stages import add_lora
from tests.checkpoints import at_ret, mixed_batch, stock, tiny_checkpoint

LAYERS = 4


@pytest.fixture
def checkpoint(tokenizer: Tokenizer) -> Checkpoint:
    return tiny_checkpoint(tokenizer, LAYERS)


def stock_states(model: torch.nn.Module, batch: Batch, layer: int | None = None) -> torch.Tensor:
    """Run transformers' own forward; with a layer, the final norm over that hidden state."""
    found = stock(model, batch)
    if layer is None:
        return at_ret(found.last_hidden_state, batch)
    return at_ret(model.language_model.norm(found.hidden_states[layer]), batch)


def test_the_state_at_ret_is_transformers_own(checkpoint: Checkpoint) -> None:
    batch = mixed_batch(checkpoint.spec)
    with torch.no_grad():
        found, expected = ret_states(checkpoint.model, batch), stock_states(checkpoint.model, batch)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_cut_model_is_the_norm_over_an_inner_state(checkpoint: Checkpoint, keep: int) -> None:
    batch = mixed_batch(checkpoint.spec)
    with torch.no_grad():
        expected = stock_states(checkpoint.model, batch, layer=keep)
        cut = prune(checkpoint, choose_layers(LAYERS, keep))
        found = ret_states(cut.model, batch)
    assert torch.equal(found, expected)
    assert cut.card.kept_layers == tuple(range(keep))
    assert cut.model.config.text_config.num_hidden_layers == keep


def test_choosing_layers() -> None:
    assert choose_layers(8, 3) == (0, 1, 2)
    assert choose_layers(8, 3, with_last=True) == (0, 1, 7)
    for keep in (0, -1, 9):
        with pytest.raises(UsageError, match=r"--keep-layers .* give 1 to 8"):
            choose_layers(8, keep)


def test_a_saved_checkpoint_opens_the_same(checkpoint: Checkpoint, tmp_path: Path) -> None:
    cut = prune(checkpoint, (0, 3))
    batch = mixed_batch(cut.spec)
    save(cut, tmp_path)
    opened = load(str(tmp_path))
    assert opened.card == cut.card
    assert (
        opened.spec.collate([opened.spec.encode(Item("a fox"))]).input_ids
        == cut.spec.collate([cut.spec.encode(Item("a fox"))]).input_ids
    ).all()
    with torch.no_grad():
        assert torch.equal(ret_states(opened.model, batch), ret_states(cut.model, batch))


def test_plain_transformers_opens_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    save(checkpoint, tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "Qwen2VLModel"
    assert AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("[RET]") > 0


@pytest.mark.parametrize("unwanted", [(), ("rope_parameters",), ("rope_theta", "rope_scaling")])
def test_a_folder_opens_the_same_in_the_names_of_either_transformers(
    checkpoint: Checkpoint, tmp_path: Path, unwanted: tuple[str, ...]
) -> None:
    """With those of 5, with those of 4.57, with both, as `save` writes them."""
    batch = mixed_batch(checkpoint.spec)
    save(checkpoint, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    text = config["text_config"]
    assert text["rope_theta"] == 10000.0
    assert text["rope_scaling"]["mrope_section"] == [2, 3, 3]
    text.setdefault("rope_parameters", text["rope_scaling"] | {"rope_theta": text["rope_theta"]})
    for name in unwanted:
        del text[name]
    path.write_text(json.dumps(config), encoding="utf-8")
    with torch.no_grad():
        opened = ret_states(load(str(tmp_path)).model, batch)
        assert torch.equal(opened, ret_states(checkpoint.model, batch))
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_lora_sits_on_every_linear_of_the_decoder_and_nowhere_else(checkpoint: Checkpoint) -> None:
    peft = add_lora(checkpoint, StageConfig(batch=2, lora_r=4, lora_alpha=8), seed=0)
    trained = {name for name, p in peft.named_parameters() if p.requires_grad}
    assert len(trained) == LAYERS * 7 * 2
    assert all("language_model.layers" in name and "lora_" in name for name in trained)


def test_merging_gives_what_the_adapters_gave_rounded_to_bf16(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    batch = mixed_batch(checkpoint.spec)
    peft = add_lora(checkpoint, StageConfig(batch=2, lora_r=4, lora_alpha=8), seed=0)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
        peft.eval()
        expected = ret_states(peft, batch)
        merged = merge(peft, checkpoint, tmp_path / "merged")
        found = ret_states(merged.model, batch)
        opened = ret_states(load(str(tmp_path / "merged")).model, batch)
    assert torch.equal(found, opened)
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.999


def test_a_folder_that_is_no_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(PumaError, match="no model folder") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)
