"""The Python interface: light to import, and the same numbers as the parts it is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import puma_edge
from puma_edge import Embedder, Query
from puma_edge.bundle import Bundle, Manifest, Precision
from puma_edge.errors import PumaError, UsageError
from puma_edge.images import PixelLimits
from puma_edge.prompts import PromptFormat
from puma_edge.runtimes.engine import Engine
from puma_edge.runtimes.searcher import embed_queries
from tests.checkout import ROOT, run_python
from tests.edge import DIMENSION, HashEncoder, embed, encoded, fill, picture, small_spec

LIGHT = """
import sys
sys.path.insert(0, sys.argv[1])
import puma_edge
assert puma_edge.__version__
print(*sorted({"numpy", "PIL", "pyarrow", "tokenizers", "onnxruntime", "torch"} & set(sys.modules)))
puma_edge.open_bundle
print(*sorted({"onnxruntime", "torch", "transformers", "typer"} & set(sys.modules)))
"""


def embedder() -> Embedder:
    instructions = {"text": "Find text.", "image": "Find image.", "image,text": "Find both."}
    manifest = Manifest(
        model_id="m",
        base_model="test",
        source="test",
        kept_layers=(0,),
        total_layers=2,
        dimension=DIMENSION,
        limits=PixelLimits(),
        prompt=PromptFormat(),
        instructions=instructions,
    )
    bundle = Bundle(Path("bundle"), manifest)
    bundle.__dict__["spec"] = small_spec()  # where the cached property would keep it
    return Embedder(bundle, Engine(HashEncoder(), Precision.FP32))


def test_importing_the_package_imports_nothing_else() -> None:
    assert run_python("-c", LIGHT, str(ROOT)) == "\n\n"


def test_words_pictures_and_both(tmp_path: Path) -> None:
    path = tmp_path / "q.png"
    path.write_bytes(encoded(picture(1)))
    model = embedder()
    items = ["a fox", path, Query("in blue", path)]
    expected = [Query("a fox"), Query(None, path), Query("in blue", path)]
    spec, encoder = small_spec(), HashEncoder()
    plain = embed_queries(expected, spec, encoder, {})
    assert np.array_equal(model.embed(items), plain)
    asked = embed_queries(expected, spec, encoder, model.bundle.manifest.instructions)
    assert np.array_equal(model.embed_queries(items), asked)
    assert not np.allclose(asked, plain)
    assert np.array_equal(model.embed(items[:1], "Find text."), asked[:1])
    assert model.embed([]).shape == model.embed_queries([]).shape == (0, DIMENSION)


def test_a_picture_is_resized_as_embed_resizes_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (300, 400, 3), np.uint8))
    root = fill(tmp_path / "corpus", {"a.png": encoded(rough)})
    embed(root, tmp_path / "index.npy")
    assert np.array_equal(embedder().embed([root / "a.png"]), np.load(tmp_path / "index.npy"))


def test_what_cannot_be_embedded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 given; expected words"):
        embedder().embed([3])  # type: ignore[list-item]
    for item in ("a fox", tmp_path / "q.png", Query("a fox")):
        with pytest.raises(UsageError, match="expected a list"):
            embedder().embed(item)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="expected a list"):
            embedder().embed_queries(item)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing to search for"):
        embedder().embed([" "])
    with pytest.raises(PumaError, match=r"gone\.png"):
        embedder().embed([tmp_path / "gone.png"])
    with pytest.raises(PumaError, match="is no bundle"):
        puma_edge.open_bundle(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        puma_edge.nothing  # noqa: B018
