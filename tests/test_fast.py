"""The extra `fast`: JPEG decoded to the very same pixels, pictures resized to within rounding."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from puma_edge import decoding
from puma_edge.decoding import decode
from puma_edge.errors import InputError
from puma_edge.images import PixelLimits, patchify
from puma_edge.resize import Resizer, UInt8, resize
from tests.edge import encoded, fill

pytest.importorskip("simplejpeg", reason="the extra fast is not installed")
pytest.importorskip("cykooz_resizer", reason="the extra fast is not installed")


@pytest.fixture(scope="module")
def photo(photograph: Path) -> Image.Image:
    return Image.open(photograph).convert("RGB")


def by_pillow(data: bytes) -> UInt8:
    """Decode as if the extra were not there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_simplejpeg", lambda: None)
        return decode(data)


def quick(data: bytes) -> UInt8 | None:
    with Image.open(io.BytesIO(data)) as image:
        return decoding._quick_jpeg(image, data)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_jpeg_is_decoded_to_the_same_pixels(photo: Image.Image, data: st.DataObject) -> None:
    left, top = data.draw(st.integers(0, 400)), data.draw(st.integers(0, 500))
    width, height = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 90))
    exif = Image.Exif()
    if turn := data.draw(st.integers(0, 9)):
        exif[0x0112] = turn
    options: dict[str, Any] = {
        "quality": data.draw(st.integers(1, 100)),
        "progressive": data.draw(st.booleans()),
        "restart_marker_rows": data.draw(st.integers(0, 2)),
        "exif": exif,
    }
    if data.draw(st.booleans()):
        options["keep_rgb"] = True
    else:
        options["subsampling"] = data.draw(st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]))
    file = encoded(photo.crop((left, top, left + width, top + height)), "JPEG", **options)
    assert quick(file) is not None
    np.testing.assert_array_equal(decode(file), by_pillow(file))


def test_a_whole_photograph_is_the_same(photograph: Path) -> None:
    data = photograph.read_bytes()
    assert quick(data) is not None
    np.testing.assert_array_equal(decode(data), by_pillow(data))


def test_what_pillow_must_do_is_left_to_it(photo: Image.Image) -> None:
    small = photo.resize((64, 48))
    others = [encoded(small.convert(mode), "JPEG") for mode in ("L", "CMYK")]
    others += [encoded(small), encoded(small, "JPEG")[:-200]]
    for file in others:
        assert quick(file) is None
    for file in others[:3]:
        np.testing.assert_array_equal(decode(file), by_pillow(file))
    with pytest.raises(InputError, match="truncated"):
        decode(others[3])
    frames = encoded(small, "MPO", save_all=True, append_images=[small.rotate(90)])
    assert quick(frames) is not None
    np.testing.assert_array_equal(decode(frames), by_pillow(frames))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 700), st.integers(1, 500)),
    st.tuples(st.integers(1, 33), st.integers(1, 33)),
    st.sampled_from(["photo", "noise", "edges"]),
)
def test_resized_to_within_rounding(
    photo: Image.Image, source: tuple[int, int], tokens: tuple[int, int], kind: str
) -> None:
    rng = np.random.default_rng(0)
    width, height = source
    if kind == "photo":
        rgb = np.asarray(photo.resize(source, Image.Resampling.LANCZOS))
    elif kind == "noise":
        rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    else:
        rgb = rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * np.uint8(255)
    size = (28 * tokens[0], 28 * tokens[1])
    fast = resize(rgb, *size, Resizer.SIMD).astype(int)
    off = np.abs(fast - resize(rgb, *size, Resizer.PILLOW))
    assert fast.shape == (size[1], size[0], 3)
    assert off.max() <= 2
    assert (off > 0).mean() < 0.03
    assert (off > 1).mean() < 2e-3


def test_a_photograph_is_resized_to_within_one_level(photo: Image.Image) -> None:
    rgb = np.asarray(photo.resize((1024, 768), Image.Resampling.LANCZOS))
    limits = PixelLimits(max_pixels=896 * 672)
    fast, slow = (patchify(rgb, limits, one).pixels.astype(int) for one in Resizer)
    assert fast.shape == (48 * 64, 588)
    off = np.abs(fast - slow)
    assert (off == 0).mean() > 0.99
    assert (off > 1).mean() < 1e-5


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999), ("int8", 0.9995)])
def test_rows_hardly_depend_on_the_resizer(
    photo: Image.Image, sample_bundle: Path, tmp_path: Path, precision: str, least: float
) -> None:
    from puma_edge.bundle import Bundle
    from puma_edge.runtimes.corpus import scan
    from puma_edge.runtimes.embedder import Settings, Stamp, embed_corpus
    from puma_edge.runtimes.engine import PrecisionChoice, open_engine

    parts = [(0, 0, 500, 400), (60, 40, 420, 590), (200, 100, 333, 222), (5, 300, 512, 333)]
    files = {f"{n}.jpg": encoded(photo.crop(box), "JPEG") for n, box in enumerate(parts)}
    corpus = scan(fill(tmp_path / "corpus", files))
    bundle = Bundle.open(sample_bundle)
    engine = open_engine(bundle, precision=PrecisionChoice(precision))
    rows = []
    for resizer in Resizer:
        out = tmp_path / f"{resizer.value}.npy"
        options = Settings(resizer=resizer)
        embed_corpus(corpus, out, bundle.spec, engine.encoder, Stamp("m", precision), options)
        rows.append(np.load(out))
    assert (rows[0] * rows[1]).sum(1).min() > least
