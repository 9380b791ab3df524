"""From a JPEG file's bytes to patches: images per second of one core, ours beside transformers'.

    python benchmarks/feed.py --images 12 --rounds 7 --out feed.json

Pictures of 1024x768 (drawn from a seed, quality 90) become 896x672, 3072 patches. The paths take
turns; a figure is the median of the rounds. Time is the thread's own, so that other work on the
machine counts for little; `--threads` times threads by the clock. `fast` wants the extra of that
name, and `transformers` is its Qwen2VLImageProcessorPil: the other one needs torchvision.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from puma_edge import decoding
from puma_edge.decoding import decode
from puma_edge.images import IMAGE_STD, PixelLimits, normalize, patchify
from puma_edge.resize import Resizer, best_resizer, resize
from puma_edge.rgb import UInt8

WIDTH, HEIGHT = 1024, 768
LIMITS = PixelLimits(max_pixels=896 * 672)

Path_ = Callable[[bytes], Any]


def draw(seed: int) -> bytes:
    """A picture with smooth light, edges and some grain, as a JPEG's bytes."""
    rng = np.random.default_rng(seed)
    light = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    picture = np.asarray(light.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(int)
    for _ in range(20):
        left, top = rng.integers(0, WIDTH - 80), rng.integers(0, HEIGHT - 60)
        wide, high = rng.integers(20, 300, 2)
        picture[top : top + high, left : left + wide] += rng.integers(-90, 90, 3)
    picture += rng.integers(-8, 9, picture.shape)
    buffer = io.BytesIO()
    made = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    made.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def by_pillow(data: bytes) -> UInt8:
    """Decode as without the extra."""
    found, decoding._simplejpeg = decoding._simplejpeg, lambda: None  # type: ignore[assignment]
    try:
        return decode(data)
    finally:
        decoding._simplejpeg = found


def paths() -> dict[str, Path_]:
    """Every way from bytes to patches that is installed."""
    found: dict[str, Path_] = {
        "pillow": lambda data: patchify(by_pillow(data), LIMITS).pixels,
    }
    if best_resizer() is Resizer.SIMD:
        found["fast"] = lambda data: patchify(decode(data), LIMITS, Resizer.SIMD).pixels
    try:
        from transformers import Qwen2VLImageProcessorPil
    except ImportError:
        return found
    size = {"shortest_edge": LIMITS.min_pixels, "longest_edge": LIMITS.max_pixels}
    processor = Qwen2VLImageProcessorPil(size=size)

    def reference(data: bytes) -> Any:
        return processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"]

    found["transformers"] = reference
    return found


def stages(data: bytes) -> dict[str, Callable[[], object]]:
    """Each step alone."""
    rgb = decode(data)
    small = resize(rgb, 896, 672, Resizer.PILLOW)
    found: dict[str, Callable[[], object]] = {
        "decode, Pillow": lambda: by_pillow(data),
        "decode, as installed": lambda: decode(data),
        "resize, Pillow": lambda: resize(rgb, 896, 672, Resizer.PILLOW),
        "cut into patches": lambda: patchify(small, LIMITS),
    }
    if best_resizer() is Resizer.SIMD:
        found["resize, SIMD"] = lambda: resize(rgb, 896, 672, Resizer.SIMD)
    return found


def seconds_each(work: Callable[[], object], times: int = 1) -> float:
    """Seconds of this thread's own time."""
    began = time.thread_time()
    for _ in range(times):
        work()
    return (time.thread_time() - began) / times


def interleaved(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taking turns; a first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            spent = seconds_each(work)
            if number:
                times[name].append(spent)
    return {name: statistics.median(spent) for name, spent in times.items()}


def by_threads(path: Path_, files: Sequence[bytes], threads: int) -> float:
    """Images per second by the clock."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(path, files))
        began = time.perf_counter()
        list(pool.map(path, list(files) * 3))
        return 3 * len(files) / (time.perf_counter() - began)


def levels(files: Sequence[bytes]) -> dict[str, float]:
    """How far each path is from transformers', in levels of 255 of the normalised values."""
    every = paths()
    if "transformers" not in every:
        return {}
    off = {}
    for name in set(every) - {"transformers"}:
        gaps = [normalize(every[name](data)) - every["transformers"](data) for data in files[:3]]
        worst = max(float(np.abs(gap).max()) for gap in gaps)
        off[name] = worst * min(IMAGE_STD) * 255
    return off


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    files = [draw(seed) for seed in range(given.images)]
    works: dict[str, Callable[[], object]] = {
        name: (lambda path=path: [path(data) for data in files]) for name, path in paths().items()
    }
    each = {name: s / len(files) for name, s in interleaved(works, given.rounds).items()}
    alone = interleaved(stages(files[0]), 3 * given.rounds)
    quickest = paths().get("fast", paths()["pillow"])
    result = {
        "images_per_second_per_core": {name: round(1 / s, 1) for name, s in each.items()},
        "milliseconds": {name: round(1e3 * s, 2) for name, s in (each | alone).items()},
        "images_per_second_by_threads": {
            n: round(by_threads(quickest, files, n), 1) for n in given.threads
        },
        "furthest_from_transformers_in_levels": levels(files),
        "bytes_of_a_file": round(sum(map(len, files)) / len(files)),
        "rounds": given.rounds,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
