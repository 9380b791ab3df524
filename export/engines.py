"""TensorRT engines of a bundle, built on the device where they will serve; torch-free.

Written against the calls that TensorRT 10, 11 and TensorRT-RTX have in common: strongly typed
networks, no precision flags, no calibrators.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from puma_edge.bundle import Bundle, Precision, sha256
from puma_edge.errors import PumaError, require
from puma_edge.inputs import InputSpec
from puma_edge.runtimes.files import replacing

ENGINES = "engines"
CACHE = "timing.cache"
# The CPU's INT8 form has zero points, which TensorRT refuses.
SERVED = (Precision.FP32, Precision.FP16, Precision.INT8_TRT)

INSTRUCTION_TOKENS = 64

Shape = tuple[int, ...]


class NoEngineError(PumaError):
    """There is nothing here to build engines with; the ONNX bundle is complete without."""


@dataclass(frozen=True)
class Profile:
    """The shapes an engine is built for: input -> smallest, usual and largest."""

    smallest: Mapping[str, Shape]
    usual: Mapping[str, Shape]
    largest: Mapping[str, Shape]


@dataclass(frozen=True)
class Built:
    """A serialised engine, and what was learned of kernels on the way."""

    plan: bytes
    cache: bytes


@dataclass(frozen=True)
class Device:
    """A GPU: its name, its compute capability without a dot ("87"), and TensorRT's version."""

    name: str
    capability: str
    version: str

    def file(self, part: str, precision: Precision) -> str:
        """The name of an engine's plan; plans of other devices lie beside it."""
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "gpu"
        engine = f"{name}-sm{self.capability}-trt{self.version}"
        return f"{engine}.{part}.{precision.value}.plan"


def text_profiles(
    spec: InputSpec, max_text_tokens: int, buckets: Sequence[tuple[int, int]] = ()
) -> list[Profile]:
    """One profile per bucket of the text graph.

    Args:
        spec: of the bundle.
        max_text_tokens: those of the user's own text, which with the largest image decide how
            long an item can be.
        buckets: (most items, most tokens); by default short queries, and everything.
    """
    tokens = spec.limits.max_pixels // (spec.limits.patch_size * spec.limits.merge_size) ** 2
    template = len(spec.tokenizer.encode(None, "a", (tokens,)))
    longest = template + max_text_tokens + INSTRUCTION_TOKENS
    return [
        Profile(_text(1, 2, 0), _text(max(1, most // 4), length // 2, tokens), largest)
        for most, length in buckets or ((32, 64), (8, longest))
        for largest in [_text(most, length, most * tokens)]
    ]


def _text(items: int, tokens: int, rows: int, width: int = -1) -> dict[str, Shape]:
    flat = (items, tokens)
    return {
        "input_ids": flat,
        "attention_mask": flat,
        "position_ids": (3, *flat),
        "image_tokens": (rows, width),
        "image_index": flat,
    }


def vision_profiles(spec: InputSpec, images: int = 8) -> list[Profile]:
    """The vision graph's profile: up to so many images, of every size the bundle allows."""
    limits, merged = spec.limits, spec.limits.merge_size**2
    least, most = (
        max(merged, pixels // limits.patch_size**2 // merged * merged)
        for pixels in (limits.min_pixels, limits.max_pixels)
    )

    def shapes(count: int, patches: int) -> dict[str, Shape]:
        return {
            "patches": (count, patches, -1),
            "patch_positions": (count, patches, -1),
            "n_patches": (count,),
        }

    return [Profile(shapes(1, merged), shapes(1, least), shapes(images, most))]


def profiles_of(bundle: Bundle, part: str) -> list[Profile]:
    """The profiles of a bundle's "vision" or "text" graph."""
    if part == "vision":
        return vision_profiles(bundle.spec)
    return text_profiles(bundle.spec, bundle.manifest.prompt.max_text_tokens)


def build_plan(trt: Any, graph: Path, profiles: Sequence[Profile], cache: bytes = b"") -> Built:
    """Build one engine.

    Args:
        trt: the module `tensorrt`, or `tensorrt_rtx_bindings`.
        graph: an ONNX file, its external weights beside it.
        profiles: shapes; an extent of -1 is the graph's own.
        cache: the timing cache of an earlier build on the same device.

    Raises:
        PumaError: TensorRT cannot parse or build the graph.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        reasons = [str(parser.get_error(n).desc()) for n in range(parser.num_errors)]
        raise PumaError(f"TensorRT {trt.__version__} cannot parse {graph}: {'; '.join(reasons)}")
    settings = builder.create_builder_config()
    for profile in profiles:
        settings.add_optimization_profile(_profile(builder, network, profile))
    timing = settings.create_timing_cache(cache)
    settings.set_timing_cache(timing, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise PumaError(
            f"TensorRT {trt.__version__} cannot build {graph}; its own messages stand above"
        )
    return Built(bytes(plan), bytes(settings.get_timing_cache().serialize()))


def _profile(builder: Any, network: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        value = network.get_input(number)
        shapes = [
            tuple(
                own if wanted < 0 else wanted
                for own, wanted in zip(value.shape, side[value.name], strict=True)
            )
            for side in (profile.smallest, profile.usual, profile.largest)
        ]
        made.set_shape(value.name, *shapes)
    return made


def this_device(trt: Any) -> Device:
    """The first GPU.

    Raises:
        NoEngineError: there is none, or no driver.
        MissingExtraError: cuda-bindings is not installed.
    """
    runtime = require("cuda.bindings.runtime", "trt")
    # Asked first: TensorRT's runtimes end the process where there is no device.
    error, count = runtime.cudaGetDeviceCount()
    if int(error) or not count:
        raise NoEngineError(f"TensorRT {trt.__version__} is installed, but there is no CUDA device")
    _, about = runtime.cudaGetDeviceProperties(0)
    name = about.name.decode() if isinstance(about.name, bytes) else str(about.name)
    return Device(name, f"{about.major}{about.minor}", str(trt.__version__))


def build_engines(folder: Path) -> list[Path]:
    """Build the engines of every precision of a bundle that TensorRT takes, into `engines/`.

    Raises:
        MissingExtraError: TensorRT is not installed.
        NoEngineError: there is no CUDA device.
        PumaError: TensorRT refuses a graph.
    """
    trt = require("tensorrt", "trt")
    return build_with(trt, Bundle.open(folder), this_device(trt))


def build_with(trt: Any, bundle: Bundle, device: Device) -> list[Path]:
    """As `build_engines`, with the module and the device given."""
    folder = bundle.folder / ENGINES
    folder.mkdir(exist_ok=True)
    kept = folder / f"{device.file('x', Precision.FP32).split('.x.')[0]}.{CACHE}"
    cache = kept.read_bytes() if kept.is_file() else b""
    built = []
    for precision in SERVED:
        if precision.value not in bundle.manifest.graphs:
            continue
        for part in ("vision", "text"):
            profiles = profiles_of(bundle, part)
            graph = bundle.graph(precision, part)
            done = build_plan(trt, graph, profiles, cache)
            cache, path = done.cache, folder / device.file(part, precision)
            _write(path, done.plan)
            _write(kept, cache)
            about = {
                **asdict(device),
                "graph": sha256(graph),
                "plan": sha256(path),
                "profiles": [asdict(profile) for profile in profiles],
            }
            _write(path.with_suffix(".json"), (json.dumps(about, indent=2) + "\n").encode())
            built.append(path)
    return built


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)
