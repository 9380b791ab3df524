"""Small random models and inputs for the tests, made from a configuration, without a hub."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import Qwen2VLConfig, Qwen2VLModel

from puma_edge.backbones import Model, tower_of
from puma_edge.bundle import TOKENIZER, Bundle, Manifest, seal
from puma_edge.images import Patches, PixelLimits, normalize
from puma_edge.inputs import Encoded, rope_positions
from puma_edge.prompts import PromptFormat
from puma_edge.spellings import rope_settings
from puma_edge.tower import PLAIN, Tower

LIMITS = PixelLimits()
VOCABULARY, IMAGE_PAD, RET, PAD = 200, 190, 191, 0


def tiny_model(
    seed: int = 0,
    *,
    hidden: int = 64,
    heads: int = 4,
    groups: int = 2,
    layers: int = 3,
    intermediate: int = 160,
    depth: int = 2,
    vision: int = 64,
    vision_heads: int = 4,
    vocabulary: int = VOCABULARY,
    image_token_id: int = IMAGE_PAD,
) -> Qwen2VLModel:
    """A Qwen2-VL with random weights, biases and norms, so that no term of the forward is zero."""
    head = hidden // heads
    time = head // 8
    row = (head // 2 - time) // 2
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            **rope_settings(10000.0, [time, row, head // 2 - time - row]),
        },
        vision_config={
            "depth": depth,
            "embed_dim": vision,
            "num_heads": vision_heads,
            "hidden_size": hidden,
        },
        image_token_id=image_token_id,
    )
    torch.manual_seed(seed)
    model = Qwen2VLModel(config).eval()
    fill(model)
    return model


def fill(model: torch.nn.Module) -> None:
    """Draw all weights, biases and norms."""
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "norm" in name or "ln_q" in name:
                values.add_(0.3 * torch.randn_like(values))
            elif name.endswith("bias"):
                values.copy_(0.3 * torch.randn_like(values))
            else:
                values.copy_(torch.randn_like(values) / values[0].numel() ** 0.5)


def image(rows: int, columns: int, seed: int, patch: int = 14) -> Patches:
    """An image of random patches with smooth shading, so that patches differ as pictures do."""
    rng = np.random.default_rng(seed)
    shade = rng.integers(0, 256, (rows * columns, 1))
    noise = rng.integers(-40, 41, (rows * columns, 3 * patch**2))
    return Patches(np.clip(shade + noise, 0, 255).astype(np.uint8), rows, columns)


def item(
    words: int, sizes: tuple[tuple[int, int], ...] = (), seed: int = 0, patch: int = 14
) -> Encoded:
    """Random text after images of these patch sizes, ending at `[RET]`, without a tokenizer."""
    rng = np.random.default_rng(seed)
    ids: list[int] = [5]
    for rows, columns in sizes:
        ids += [6, *[IMAGE_PAD] * (rows * columns // 4), 7]
    ids += [*rng.integers(10, 180, words).tolist(), RET]
    tokens = np.asarray(ids, np.int64)
    is_image = tokens == IMAGE_PAD
    images = tuple(image(*size, seed * 100 + n, patch) for n, size in enumerate(sizes))
    positions = rope_positions(is_image, sizes, LIMITS.merge_size)
    return Encoded(tokens, positions, images, np.flatnonzero(is_image))


def reference(model: Model, entry: Encoded) -> np.ndarray:
    """The stock PyTorch embedding [d] of one item."""
    grid = [[1, each.rows, each.columns] for each in entry.images]
    ids = torch.from_numpy(entry.input_ids)[None]
    visual, tower = {}, tower_of(model.config)
    if grid:
        pixels = np.concatenate(
            [normalize(each.pixels, tower.mean, tower.std) for each in entry.images]
        )
        visual = {
            "pixel_values": torch.from_numpy(pixels),
            "image_grid_thw": torch.tensor(grid),
            "mm_token_type_ids": (ids == IMAGE_PAD).int(),
        }
    with torch.no_grad():
        states = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.from_numpy(entry.positions)[:, None],
            use_cache=False,
            **visual,
        ).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(states, dim=-1).numpy()


def make_loud(model: Qwen2VLModel) -> None:
    """Add what quantisers fail on: loud channels in norms and MLPs, and one loud token."""
    with torch.no_grad():
        for layer in model.language_model.layers:
            layer.post_attention_layernorm.weight[3] *= 20
            layer.mlp.gate_proj.weight[:, 3] /= 10
            layer.mlp.up_proj.weight[:, 3] /= 10
            layer.mlp.up_proj.weight[5] *= 20
            layer.mlp.down_proj.weight[:, 5] /= 15
        model.language_model.embed_tokens.weight[5, 1] = 100.0


@dataclass(frozen=True)
class Exported:
    """A small model with loud channels, and its fp32 graphs."""

    model: Qwen2VLModel
    folder: Path


@cache
def exported() -> Exported:
    """Export once for all test files: it takes most of their time. Do not write in the folder."""
    from puma_edge.export.graphs import export_graphs

    folder = Path(tempfile.mkdtemp(prefix="puma-edge-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = tiny_model(7, hidden=128, intermediate=256, vision=128, vision_heads=8, heads=8)
    make_loud(model)
    export_graphs(model, folder)
    return Exported(model, folder)


def tiny_bundle(folder: Path, tokenizer: Tokenizer) -> Bundle:
    """The tiny graphs in fp32 and fp16, sealed; the tokenizer knows more than they do."""
    return bundle_of(exported().folder, folder, tokenizer, LIMITS, 128)


def bundle_of(
    graphs: Path,
    folder: Path,
    tokenizer: Tokenizer,
    limits: PixelLimits,
    dimension: int,
    tower: Tower = PLAIN,
) -> Bundle:
    """A bundle of three-layer fp32 graphs, and of what they are in fp16."""
    from puma_edge.export.precision import to_fp16

    parts = ("vision", "text")
    for part in parts:
        shutil.copy(graphs / f"{part}.fp32.onnx", folder)
        to_fp16(folder / f"{part}.fp32.onnx", folder / f"{part}.fp16.onnx")
    tokenizer.save(str(folder / TOKENIZER))
    files = {name: {part: f"{part}.{name}.onnx" for part in parts} for name in ("fp32", "fp16")}
    manifest = Manifest(
        *("id", "base", "merged", (0, 1, 2), 3, dimension, limits, PromptFormat()),
        tower=tower,
        graphs=files,
    )
    return Bundle(folder, seal(folder, manifest))
