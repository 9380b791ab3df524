"""A GPU that is not there: engines that ONNX Runtime runs, and `pretend_cuda` beneath them.

It stands for the hardware, so that the code that drives it runs at all where there is none: what is
copied where, in which order, and what a captured graph holds on to. It proves nothing about a GPU.
"""

from __future__ import annotations

import ctypes
import json
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from puma_edge.bundle import Bundle, Precision, sha256
from puma_edge.export.engines import Profile, profiles_of
from puma_edge.runtimes.cuda import Device
from puma_edge.runtimes.plans import ENGINES, PARTS, built_from, plan_file
from puma_edge.runtimes.trt import Gpu
from tests.pretend_cuda import PretendCuda

DEVICE = Device("Pretend GPU", "87", "10.3.0")


class Mode(Enum):
    """Of a tensor."""

    INPUT = 1
    OUTPUT = 2


class Severity(Enum):
    """Of a message."""

    ERROR = 1


class ILogger:
    """What a logger derives from."""

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class PretendTensorRT:
    """The module `tensorrt`."""

    __version__ = "10.3.0"
    ILogger, TensorIOMode = ILogger, Mode
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")

    def __init__(self, cuda: PretendCuda) -> None:
        self._cuda = cuda

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        assert self._cuda.count
        return SimpleNamespace(deserialize_cuda_engine=lambda data: self._load(bytes(data), logger))

    def _load(self, plan: bytes, logger: Any) -> PretendEngine | None:
        if not plan.startswith(b"{"):
            logger.log(Severity.ERROR, "magic tag\n does not match")
            return None
        return PretendEngine(json.loads(plan), self._cuda, logger)


class PretendEngine:
    """A plan: a graph's path and the profiles."""

    device_memory_size_v2 = 4096

    def __init__(self, plan: dict[str, Any], cuda: PretendCuda, logger: Any) -> None:
        self.cuda, self.logger, self.profiles = cuda, logger, plan["profiles"]
        self.session = ort.InferenceSession(plan["graph"], providers=["CPUExecutionProvider"])
        self.inputs = {one.name: one for one in self.session.get_inputs()}
        (self.output,) = self.session.get_outputs()
        self.num_io_tensors = len(self.inputs) + 1
        self.num_optimization_profiles = len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, self.output.name][index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        kind = self.inputs.get(name, self.output).type
        types = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64", "tensor(uint8)": "UINT8"}
        return SimpleNamespace(name=types[kind])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self.inputs.get(name, self.output).shape
        return tuple(one if isinstance(one, int) else -1 for one in shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        own = self.get_tensor_shape(name)
        return [
            tuple(o if w < 0 else w for o, w in zip(own, self.profiles[profile_index][side][name],
                                                    strict=True))
            for side in ("smallest", "usual", "largest")
        ]  # fmt: skip

    def create_execution_context(self, strategy: str) -> PretendContext:
        assert strategy == "user"
        return PretendContext(self)


class PretendContext:
    """A context: nothing may run before profile, memory, shapes and addresses are set."""

    def __init__(self, engine: PretendEngine) -> None:
        self.engine, self.profile, self.memory = engine, -1, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.runs = 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.memory = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, self.profile)
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            self.engine.logger.log(Severity.ERROR, f"{shape} is not in {least} to {most}")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == self.engine.output.name
        width = int(self.engine.output.shape[-1])
        if "patches" in self.shapes:
            images, patches, _ = self.shapes["patches"]
            return images * patches // 4, width
        return self.shapes["input_ids"][0], width

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.memory
        assert set(self.addresses) == {*self.engine.inputs, self.engine.output.name}
        # TensorRT works on the host in a shape's first run, which a graph would lack.
        assert self.runs or self.engine.cuda.recording is None
        self.runs += 1
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        self.engine.cuda.do(lambda: self._run(shapes, addresses))
        return True

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        feeds = {}
        for name, shape in shapes.items():
            kind = {"FLOAT": np.float32, "INT64": np.int64, "UINT8": np.uint8}[
                self.engine.get_tensor_dtype(name).name
            ]
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            data = ctypes.string_at(addresses[name], size)
            feeds[name] = np.frombuffer(data, kind).reshape(shape)
        (found,) = self.engine.session.run(None, feeds)
        ctypes.memmove(addresses[self.engine.output.name], found.tobytes(), found.nbytes)


def pretend(**settings: int) -> Gpu:
    """TensorRT and CUDA on such a GPU; `settings` are those of `PretendCuda`."""
    cuda: Any = PretendCuda(**settings)
    trt: Any = PretendTensorRT(cuda)
    return Gpu(trt, cuda)


def write_engines(bundle: Bundle, precision: Precision, *, device: Device = DEVICE) -> list[Path]:
    """Engines of a bundle for the pretended GPU, with what lies beside them."""
    folder, made = bundle.folder / ENGINES, []
    folder.mkdir(exist_ok=True)
    for part in PARTS:
        graph = bundle.graph(precision, part)
        profiles = [vars(one) for one in small_profiles(bundle, part)]
        path = folder / plan_file(device, part, precision)
        path.write_text(json.dumps({"graph": str(graph), "profiles": profiles}))
        about = {"built_from": built_from(bundle, part, precision), "plan": sha256(path)}
        path.with_suffix(".json").write_text(json.dumps(about))
        made.append(path)
    return made


def small_profiles(bundle: Bundle, part: str) -> list[Profile]:
    """Those that ship, with room for few items only."""
    profiles = profiles_of(bundle, part)
    most = {"vision": [2], "text": [4, 3]}[part]
    return [
        Profile(one.smallest, one.usual, {name: _fewer(name, shape, count)
                                         for name, shape in one.largest.items()})
        for one, count in zip(profiles, most, strict=True)
    ]  # fmt: skip


def _fewer(name: str, shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    if name in ("window_patches", "window_lengths"):
        return shape
    if name == "position_ids":
        return (shape[0], count, *shape[2:])
    return shape if name == "image_tokens" else (count, *shape[1:])
