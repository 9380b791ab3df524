"""All families cut alike: a cut model is the norm over an inner state of the whole one."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from puma_edge.backbones import Family, feature_blocks
from puma_edge.errors import UsageError
from puma_edge.layer_choice import choose_layers, parse_layers
from puma_edge.model import prune, ret_states
from puma_edge.prompts import IMAGE_PAD
from tests.checkpoints import at_ret, checkpoint_of, mixed_batch, stock
from tests.families import LAYERS, tiny


@pytest.mark.parametrize("family", list(Family))
def test_a_cut_model_is_the_norm_over_an_inner_state(family: Family, tokenizer: Tokenizer) -> None:
    checkpoint = checkpoint_of(family, tokenizer)
    batch = mixed_batch(checkpoint.spec)
    found = stock(checkpoint.model, batch)
    with torch.no_grad():
        states = ret_states(checkpoint.model, batch)
    assert torch.equal(states, at_ret(found.last_hidden_state, batch))
    for keep in range(LAYERS - 1, max(1, checkpoint.tower.features) - 1, -1):
        with torch.no_grad():
            norm = checkpoint.model.language_model.norm
            expected = at_ret(norm(found.hidden_states[keep]), batch)
            checkpoint = prune(checkpoint, choose_layers(keep + 1, keep))
            assert torch.equal(ret_states(checkpoint.model, batch), expected)
        assert checkpoint.card.kept_layers == tuple(range(keep))
        assert checkpoint.model.config.text_config.num_hidden_layers == keep


def test_layers_with_vision_features_cannot_be_cut(tokenizer: Tokenizer) -> None:
    checkpoint = checkpoint_of(Family.QWEN3_VL, tokenizer)
    assert checkpoint.tower.features == 2
    for layers in ((0,), (0, 2, 4), (1, 2, 3)):
        with pytest.raises(UsageError, match=r"first 2 layers \(DeepStack\).*keep 0,1") as caught:
            prune(checkpoint, layers)
        assert "\n" not in str(caught.value)
    cut = prune(checkpoint, (0, 1, 4))
    batch = mixed_batch(cut.spec)
    whole = tiny(Family.QWEN3_VL, tokenizer.get_vocab_size() + 3, tokenizer.token_to_id(IMAGE_PAD))
    whole.language_model.layers = torch.nn.ModuleList(
        whole.language_model.layers[number] for number in (0, 1, 4)
    )
    whole.config.text_config.num_hidden_layers = 3
    with torch.no_grad():
        states = ret_states(cut.model, batch)
    assert torch.equal(states, at_ret(stock(whole, batch).last_hidden_state, batch))


def test_choosing_layers() -> None:
    assert choose_layers(8, 4, features=3) == (0, 1, 2, 3)
    assert choose_layers(8, 4, with_last=True, features=3) == (0, 1, 2, 7)
    assert choose_layers(8, 0, layers=(0, 2, 7)) == (0, 2, 7)
    assert parse_layers("0,1,2,7") == [0, 1, 2, 7]
    assert parse_layers(None) is None
    for keep, with_last in ((2, False), (3, True)):
        with pytest.raises(UsageError, match="--keep-layers 3 or more, 4 with --with-last"):
            choose_layers(8, keep, with_last=with_last, features=3)
    for layers in ((0, 8), (-1, 0), (1, 0), (0, 0)):
        with pytest.raises(UsageError, match="layers 0 to 7; give some of them, each once"):
            choose_layers(8, 0, layers=layers)
    with pytest.raises(UsageError, match="--layers 0,1 and --keep-layers 2 given"):
        choose_layers(8, 2, layers=(0, 1))
    with pytest.raises(UsageError, match="--layers 0,1 and --with-last given"):
        choose_layers(8, 0, with_last=True, layers=(0, 1))
    with pytest.raises(UsageError, match="expected whole numbers"):
        parse_layers("0-3")


def test_features_are_those_of_blocks_that_exist() -> None:
    vision = tiny(Family.QWEN3_VL).config.vision_config
    assert feature_blocks(vision) == [0, 2]
    vision.deepstack_visual_indexes = [9, 2, 1]
    assert feature_blocks(vision) == [1, 2]
