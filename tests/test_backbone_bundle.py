"""A Qwen3-VL from its folder to embeddings, by way of a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from puma_edge.backbones import Family
from puma_edge.bundle import Bundle
from puma_edge.config import ExportConfig, Gate
from puma_edge.decoding import decode
from puma_edge.errors import PumaError
from puma_edge.export.command import run_export
from puma_edge.inputs import Item
from puma_edge.model import prune, save
from puma_edge.runtimes.engine import PrecisionChoice, Runtime, open_engine
from puma_edge.torch_encoder import TorchEncoder
from tests.checkpoints import checkpoint_of


def test_a_qwen3_vl_becomes_a_bundle(
    tokenizer: Tokenizer, photograph: Path, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(Family.QWEN3_VL, tokenizer)
    save(checkpoint, tmp_path / "model")
    photos = tmp_path / "photos"
    photos.mkdir()
    with Image.open(photograph) as picture:
        for number in range(6):
            picture.resize((300 + 90 * number, 250)).save(photos / f"{number}.png")
            (photos / f"word{number}.txt").write_text(f"a fox and {number} dogs", encoding="utf-8")
    out = tmp_path / "bundle"
    # Weights are random: which hit comes first is chance, so the gate only reports it.
    config = ExportConfig(
        model=str(tmp_path / "model"),
        out=str(out),
        layers=(0, 1, 4),
        int8=True,
        calibration=str(photos),
        calibration_items=8,
        gate=Gate.REPORT,
    )
    run_export(config, lambda text: None)

    bundle = Bundle.open(out)
    manifest = bundle.manifest
    assert (manifest.kept_layers, manifest.tower) == ((0, 1, 4), checkpoint.tower)
    assert manifest.limits.patch_size == 16
    assert manifest.parity["int8"]["batch_cosine"] > 0.9999
    assert manifest.inputs["vision"]["grid_index"] == {
        "dtype": "int64",
        "shape": ["images", "4*quads", 4],
        "feed": "grid_feeds",
    }
    pictures = tuple(decode(photos / f"{number}.png") for number in (0, 2))
    items = [Item("a fox"), Item(None, pictures[:1]), Item("two dogs", pictures)]
    batch = bundle.spec.collate([bundle.spec.encode(one) for one in items])
    engine = open_engine(bundle, Runtime.ORT, PrecisionChoice.FP32, threads=1)
    expected = TorchEncoder(prune(checkpoint, (0, 1, 4)).model).encode(batch)
    np.testing.assert_allclose(engine.encoder.encode(batch), expected, atol=1e-5)

    path = out / "manifest.json"
    newer = path.read_text(encoding="utf-8").replace('"grid_weights"', '"spline_weights"')
    path.write_text(newer, encoding="utf-8")
    with pytest.raises(PumaError, match="vision graph takes spline_weights, which this puma-edge"):
        Bundle.open(out)
