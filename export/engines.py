"""TensorRT engines of a bundle, built on the device where they will serve; torch-free.

Written against the calls that TensorRT 10, 11 and TensorRT-RTX have in common: strongly typed
networks, no precision flags, no calibrators.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from puma_edge.bundle import Bundle, Precision, sha256
from puma_edge.errors import PumaError
from puma_edge.inputs import InputSpec
from puma_edge.runtimes.cuda import Device
from puma_edge.runtimes.files import replacing
from puma_edge.runtimes.nvidia import (
    Builder,
    INetworkDefinition,
    IOptimizationProfile,
    Shape,
    TensorRT,
)
from puma_edge.runtimes.plans import ENGINES, PARTS, SERVED, built_from, plan_file
from puma_edge.runtimes.trt import open_gpu
from puma_edge.runtimes.trt_log import Messages

CACHE = "timing.cache"

INSTRUCTION_TOKENS = 64


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
    tokens = spec.limits.max_tokens
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
    most = limits.max_tokens * merged

    def shapes(count: int, patches: int) -> dict[str, Shape]:
        flat = (count, patches)
        found: dict[str, Shape] = {
            "patches": (*flat, -1),
            "patch_positions": (*flat, -1),
            "n_patches": (count,),
        }
        if spec.tower.window:
            windows = count * most_windows(patches, spec.tower.window, limits.merge_size)
            found |= {"window_patches": (windows, -1), "window_lengths": (windows,)}
            found["patch_places"] = flat
        if spec.tower.grid:
            found |= {"grid_index": (*flat, -1), "grid_weights": (*flat, -1)}
        return found

    # Most photographs are larger than the largest area, and are brought to it.
    return [Profile(shapes(1, merged), shapes(1, most), shapes(images, most))]


def most_windows(patches: int, edge: int, merge_size: int) -> int:
    """Windows of `edge` patches a side that an image of at most so many patches can have.

    Flat images have the most: their windows are cut off at the lower edge.
    """
    rows = range(merge_size, patches // merge_size + 1, merge_size)
    return max(-(-high // edge) * -(-(patches // high) // edge) for high in rows)


def profiles_of(bundle: Bundle, part: str) -> list[Profile]:
    """The profiles of a bundle's "vision" or "text" graph."""
    if part == "vision":
        return vision_profiles(bundle.spec)
    return text_profiles(bundle.spec, bundle.manifest.prompt.max_text_tokens)


def build_plan(
    trt: TensorRT, graph: Path, profiles: Sequence[Profile], cache: bytes = b""
) -> Built:
    """Build one engine.

    Args:
        trt: the module `tensorrt`, or `tensorrt_rtx_bindings`.
        graph: an ONNX file, its external weights beside it.
        profiles: shapes; an extent of -1 is the graph's own.
        cache: the timing cache of an earlier build on the same device.

    Raises:
        PumaError: TensorRT cannot parse or build the graph, or it has inputs without a profile.
    """
    messages = Messages(trt)
    builder = trt.Builder(messages.logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse_from_file(str(graph)):
        reasons = [str(parser.get_error(n).desc()) for n in range(parser.num_errors)]
        raise PumaError(f"TensorRT {trt.__version__} cannot parse {graph}: {'; '.join(reasons)}")
    settings = builder.create_builder_config()
    # It rounds float32 products to 10 bits, and is on by default.
    settings.clear_flag(trt.BuilderFlag.TF32)
    for profile in profiles:
        settings.add_optimization_profile(_profile(builder, network, profile))
    timing = settings.create_timing_cache(cache)
    settings.set_timing_cache(timing, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise PumaError(f"TensorRT {trt.__version__} cannot build {graph}: {messages.take()}")
    return Built(bytes(plan), bytes(settings.get_timing_cache().serialize()))


def _profile(
    builder: Builder, network: INetworkDefinition, profile: Profile
) -> IOptimizationProfile:
    made = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        value = network.get_input(number)
        if value.name not in profile.usual:
            raise PumaError(
                f"no TensorRT engine is built of a graph that takes {value.name}, for which there "
                "is no profile; take --runtime ort"
            )
        shapes = [
            tuple(
                own if wanted < 0 else wanted
                for own, wanted in zip(value.shape, side[value.name], strict=True)
            )
            for side in (profile.smallest, profile.usual, profile.largest)
        ]
        made.set_shape(value.name, *shapes)
    return made


def worth_building(bundle: Bundle) -> list[Precision]:
    """Every precision of a bundle that TensorRT takes; FP32 only where there is no other.

    A small device has no memory for the largest, and a GPU no use.
    """
    there = [one for one in SERVED if one.value in bundle.manifest.graphs]
    return [one for one in there if one is not Precision.FP32] or there


def build_engines(folder: Path) -> list[Path]:
    """Build a bundle's engines, into `engines/`: see `worth_building`.

    Raises:
        MissingExtraError: TensorRT or cuda-bindings is not installed.
        NoDeviceError: there is no CUDA device.
        PumaError: TensorRT refuses a graph.
    """
    gpu, bundle = open_gpu(), Bundle.open(folder)
    return build_with(gpu.trt, bundle, gpu.device, worth_building(bundle))


def build_with(
    trt: TensorRT, bundle: Bundle, device: Device, precisions: Sequence[Precision] = SERVED
) -> list[Path]:
    """As `build_engines`, with the module, the device and the precisions given."""
    folder = bundle.folder / ENGINES
    folder.mkdir(exist_ok=True)
    kept = folder / f"{device.slug}.{CACHE}"
    cache = kept.read_bytes() if kept.is_file() else b""
    built = []
    for precision in precisions:
        for part in PARTS:
            profiles = profiles_of(bundle, part)
            graph = bundle.graph(precision, part)
            done = build_plan(trt, graph, profiles, cache)
            cache, path = done.cache, folder / plan_file(device, part, precision)
            _write(path, done.plan)
            _write(kept, cache)
            about = {
                **asdict(device),
                "built_from": built_from(bundle, part, precision),
                "plan": sha256(path),
                "profiles": [asdict(profile) for profile in profiles],
            }
            _write(path.with_suffix(".json"), (json.dumps(about, indent=2) + "\n").encode())
            built.append(path)
    return built


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)
