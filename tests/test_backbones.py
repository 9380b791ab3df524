"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL alike: transformers' own states, positions and pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from puma_edge import feeds
from puma_edge.backbones import Family, backbone_of, feature_blocks, tower_of
from puma_edge.errors import PumaError, UsageError
from puma_edge.identity import model_id
from puma_edge.images import PixelLimits, decode, normalize, patchify
from puma_edge.inputs import Batch, Encoded, InputSpec, Item, Positions, collate, rope_positions
from puma_edge.layer_choice import choose_layers, parse_layers
from puma_edge.model import Card, Checkpoint, load, prune, ret_states, save
from puma_edge.prompts import IMAGE_PAD
from puma_edge.shapes import SHAPES, Shape, shape_tower
from puma_edge.spellings import IS_OLDER
from puma_edge.tower import Tower
from tests.families import LAYERS, tiny
from tests.models import PAD, image

FAMILIES = pytest.mark.parametrize("family", list(Family))
NEWER = pytest.mark.skipif(IS_OLDER, reason="the reference came with transformers 5")
SIZE = st.tuples(st.integers(1, 13), st.integers(1, 13)).map(
    lambda size: (2 * size[0], 2 * size[1])
)


def checkpoint_of(family: Family, tokenizer: Tokenizer) -> Checkpoint:
    """A tiny random model whose vocabulary is the test tokenizer's."""
    pad = tokenizer.token_to_id(IMAGE_PAD)
    model = tiny(family, tokenizer.get_vocab_size() + 3, pad)
    backbone = backbone_of(family)
    layers = tuple(range(LAYERS))
    card = Card("tiny", layers, LAYERS, limits=backbone.limits, prompt=backbone.prompt)
    return Checkpoint(model, tokenizer, card)


def mixed_batch(spec: InputSpec) -> Batch:
    """Text, an image of several windows, both, two images; sizes differ."""
    draw = np.random.default_rng(0)
    shapes = ((150, 220, 3), (300, 90, 3))
    pictures = [draw.integers(0, 256, shape, np.uint8) for shape in shapes]
    items = [
        Item("a fox", instruction="Find it."),
        Item(None, (pictures[0],)),
        Item("two pictures of words", tuple(pictures)),
    ]
    return spec.collate([spec.encode(one) for one in items])


def stock(model: Any, batch: Batch) -> Any:
    """Run transformers' own forward on the whole of a batch."""
    ids, tower = torch.from_numpy(batch.input_ids), tower_of(model.config)
    pixels = normalize(batch.real_patches(), tower.mean, tower.std)
    with torch.no_grad():
        return model(
            input_ids=ids,
            attention_mask=torch.from_numpy(batch.attention_mask),
            position_ids=torch.from_numpy(batch.position_ids),
            pixel_values=torch.from_numpy(pixels),
            image_grid_thw=torch.tensor([(1, *size) for size in batch.image_sizes]),
            mm_token_type_ids=(ids == model.config.image_token_id).long(),
            output_hidden_states=True,
            use_cache=False,
        )


def at_ret(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    return states[torch.arange(len(batch)), torch.from_numpy(batch.attention_mask).sum(1) - 1]


# --- the cut ------------------------------------------------------------------------------------


@FAMILIES
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


# --- positions, pixels, indices -----------------------------------------------------------------


@NEWER
@FAMILIES
def test_positions_equal_transformers(family: Family) -> None:
    model = tiny(family)

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        sizes=st.lists(SIZE, max_size=4), gaps=st.lists(st.integers(1, 9), min_size=5, max_size=5)
    )
    def check(sizes: list[tuple[int, int]], gaps: list[int]) -> None:
        marks: list[int] = [0] * gaps[0]
        for (rows, columns), gap in zip(sizes, gaps[1:], strict=False):
            marks += [1] * (rows * columns // 4) + [0] * gap
        is_image = np.asarray(marks, bool)
        ids = torch.full((1, len(marks)), 5)
        expected, _ = model.get_rope_index(
            ids,
            mm_token_type_ids=torch.from_numpy(is_image)[None].int(),
            image_grid_thw=torch.tensor([[1, *size] for size in sizes]) if sizes else None,
            attention_mask=torch.ones_like(ids),
        )
        np.testing.assert_array_equal(rope_positions(is_image, sizes, 2), expected[:, 0].numpy())

    check()


@NEWER
@pytest.mark.parametrize("size", [(512, 600), (1, 1), (150, 2), (2000, 1500), (48, 80), (64, 6400)])
def test_qwen3_pixels_equal_transformers(size: tuple[int, int], photograph: Path) -> None:
    from transformers import Qwen2VLImageProcessorPil

    limits, tower = backbone_of(Family.QWEN3_VL).limits, tower_of(tiny(Family.QWEN3_VL).config)
    # What the published models' preprocessor_config.json says, but for PUMA's limit of tokens.
    assert limits == PixelLimits(65536, 300 * 32 * 32, patch_size=16, merge_size=2)
    rgb = np.asarray(Image.fromarray(decode(photograph)).resize(size))
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels},
        patch_size=16,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    expected = processor(Image.fromarray(rgb), return_tensors="np")
    found = patchify(rgb, limits)
    assert [1, found.rows, found.columns] == expected["image_grid_thw"][0].tolist()
    values = normalize(found.pixels, tower.mean, tower.std)
    assert np.abs(values - expected["pixel_values"]).max() <= 1e-6


def images_of(sizes: list[tuple[int, int]], tower: Tower) -> Batch:
    """A batch of one item that has images of these sizes."""
    cut = tuple(image(*size, seed=number) for number, size in enumerate(sizes))
    places = np.arange(sum(len(one.pixels) for one in cut) // 4)
    ids = np.full(len(places), 7)
    item = Encoded(ids, np.zeros((3, len(ids)), np.int64), cut, places)
    return collate([item], PAD, PixelLimits(), tower)


@NEWER
@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes=st.lists(SIZE, min_size=1, max_size=4), edge=st.sampled_from([4, 8]))
def test_windows_equal_transformers(sizes: list[tuple[int, int]], edge: int) -> None:
    from transformers.vision_utils import get_vision_window_index

    grid = torch.tensor([(1, *size) for size in sizes])
    order, ends = get_vision_window_index(grid, 2, edge * 14, 14)
    order = np.stack([4 * order.numpy() + place for place in range(4)], axis=1).ravel()
    expected = [set(part) for part in np.split(order, ends.tolist()[1:-1])]

    batch = images_of(sizes, Tower(window=edge))
    made = feeds.window_feeds(batch)
    # The number of each patch among the real ones of all images, which transformers counts.
    real = np.arange(batch.patches.shape[1]) < batch.n_patches[:, None]
    number = (np.cumsum(real) - 1).reshape(-1)
    rows = zip(made["window_patches"], made["window_lengths"], strict=True)
    assert [set(number[row[:taken]]) for row, taken in rows] == expected
    back = made["window_patches"].ravel()[made["patch_places"]]
    np.testing.assert_array_equal(back[real], np.flatnonzero(real))


@NEWER
@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes=st.lists(SIZE, min_size=1, max_size=4), side=st.sampled_from([6, 48]))
def test_grid_points_equal_transformers(sizes: list[tuple[int, int]], side: int) -> None:
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    grid = torch.tensor([(1, *size) for size in sizes])
    index, weights = get_vision_interpolation_indices_and_weights(
        grid, side, align_corners=True, spatial_merge_size=2
    )
    batch = images_of(sizes, Tower(grid=side))
    made = feeds.grid_feeds(batch)
    real = np.arange(batch.patches.shape[1]) < batch.n_patches[:, None]
    np.testing.assert_array_equal(made["grid_index"][real], index.numpy())
    np.testing.assert_array_equal(made["grid_weights"][real], weights.numpy())
    assert not made["grid_weights"][~real].any()


@FAMILIES
def test_every_input_has_the_function_that_makes_it(family: Family) -> None:
    tower = tower_of(tiny(family).config)
    batch = images_of([(4, 6), (10, 2)], tower)
    named = feeds.makers(tower)
    assert feeds.vision_feeds(batch).keys() == named["vision"].keys()
    for name, function in named["vision"].items():
        assert name in getattr(feeds, function)(batch)
    assert feeds.text_feeds(batch, np.zeros((0, 1), np.float32)).keys() == named["text"].keys()


# --- checkpoints --------------------------------------------------------------------------------


@FAMILIES
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


@FAMILIES
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


@FAMILIES
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


@FAMILIES
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


# --- shapes -------------------------------------------------------------------------------------


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


def test_features_are_those_of_blocks_that_exist() -> None:
    vision = tiny(Family.QWEN3_VL).config.vision_config
    assert feature_blocks(vision) == [0, 2]
    vision.deepstack_visual_indexes = [9, 2, 1]
    assert feature_blocks(vision) == [1, 2]
