"""Pictures that cannot be read: one clear line each, whatever the damage."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from puma_edge import decoding
from puma_edge.decoding import decode
from puma_edge.errors import InputError
from tests.edge import encoded
from tests.pictures import chunk, colours, frames, png


def test_refuses_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    for source in (path, b""):
        with pytest.raises(InputError, match=r"empty .0 bytes.; expected an image"):
            decode(source)


def test_refuses_text_named_png_and_says_the_same_every_time(tmp_path: Path) -> None:
    path = tmp_path / "note.png"
    path.write_text("Dear diary,")
    messages = set()
    for _ in range(2):
        with pytest.raises(InputError, match=r"not an image.*b'Dear dia'.*PNG or JPEG") as caught:
            decode(path)
        messages.add(str(caught.value))
    assert len(messages) == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_refuses_truncated_files(kind: str) -> None:
    data = encoded(Image.fromarray(colours(64, 80)), kind)
    with pytest.raises(InputError, match=r"damaged image.*expected a complete file|not an image"):
        decode(data[: len(data) // 2])


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the file: No such file"):
        decode(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="cannot read the file"):
        decode(tmp_path)


def test_refuses_large_files_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(bytes(101))
    monkeypatch.setattr(decoding, "MAX_FILE_BYTES", 100)
    with pytest.raises(InputError, match="101 bytes is over the limit of 100 bytes"):
        decode(path)


def test_refuses_a_decompression_bomb() -> None:
    bomb = png(np.zeros((1, 1)), 0, 8)
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    bomb = bomb[:8] + chunk(b"IHDR", header) + bomb[33:]
    with pytest.raises(InputError, match=r"400000000 pixels.*limit of .* scale it down"):
        decode(bomb)


def test_refuses_what_is_over_our_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_DECODED_PIXELS", 619)
    with pytest.raises(InputError, match="31x20 pixels is over the limit of 619 pixels"):
        decode(encoded(Image.fromarray(colours()), "PNG"))


def test_never_runs_ghostscript() -> None:
    with pytest.raises(InputError, match=r"EPS.*convert it to PNG"):
        decode(encoded(Image.fromarray(colours()), "EPS"))


def test_running_out_of_memory_is_this_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(decoding, "to_rgb", fail)
    with pytest.raises(InputError, match="does not fit in memory; scale it down"):
        decode(encoded(Image.fromarray(colours()), "PNG"))


def real_files() -> list[bytes]:
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a camera"
    rgb, palette = Image.fromarray(colours()), Image.fromarray(colours()).quantize(9)
    sixteen = Image.fromarray(np.arange(620, dtype=np.uint16).reshape(20, 31) * 99)
    first, *rest = frames()
    files = [encoded(rgb, kind) for kind in ("PNG", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000")]
    files += [encoded(rgb, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    files += [encoded(rgb.convert("CMYK"), "JPEG"), encoded(palette, "PNG", transparency=3)]
    files += [encoded(rgb, "JPEG", progressive=True), encoded(sixteen, "PNG")]
    files += [encoded(Image.fromarray(colours(channels=4)), kind) for kind in ("PNG", "WEBP")]
    files += [encoded(rgb, "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg")]
    files += [encoded(first, kind, save_all=True, append_images=rest) for kind in ("GIF", "WEBP")]
    return files


FILES = real_files()
EDIT = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))


# Warnings: Pillow's, on what it finds odd. The limit keeps a header that says "huge" cheap.
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.integers(0, len(FILES) - 1),
    st.lists(EDIT, max_size=6),
    # Half of the edits go to the head, where every byte means something.
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
@example(0, [], [], 0.0)
def test_damage_is_an_input_error_or_nothing(
    number: int, edits: list[tuple[float, int]], head: list[tuple[int, int]], kept: float
) -> None:
    data = bytearray(FILES[number])
    for place, value in edits:
        data[int(place * len(data))] = value
    for index, value in head:
        data[index % len(data)] = value
    # Most examples keep the whole file.
    data = data[: int(min(1.0, kept * 3) * len(data))]
    got, message = np.zeros((1, 1, 3), np.uint8), "readable"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "MAX_DECODED_PIXELS", 10**6)
        try:
            got = decode(bytes(data))
        except InputError as error:
            message = str(error)
    assert message
    assert "\n" not in message
    assert " at 0x" not in message
    assert got.dtype == np.uint8
    assert got.ndim == 3
    assert got.shape[2] == 3
