"""One TensorRT engine: its buffers, and a context with a captured graph for each shape."""

from __future__ import annotations

import math
import mmap
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import PumaError
from puma_edge.runtimes.buckets import Room
from puma_edge.runtimes.cuda import Buffer, Graph, Mark, Stream, free_memory, require_memory
from puma_edge.runtimes.nvidia import Cuda, ICudaEngine, IExecutionContext, Shape, TensorRT
from puma_edge.runtimes.trt_log import Messages

GRAPHS = 32  # shapes an engine keeps ready; each costs some MB of the GPU
TYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}
Elsewhere = Mapping[str, tuple[Shape, Buffer]]


@dataclass
class Ready:
    """A context set to one shape, and what was captured of it.

    NVIDIA asks for a context of its own for every graph: a graph holds on to the state that its
    context had, and to the addresses of its tensors.
    """

    context: IExecutionContext
    copies: Sequence[tuple[Buffer, int]]
    fetched: int
    graph: Graph | None = None
    runs: int = 0


class TrtGraph:
    """An engine with everything it needs on the GPU.

    Attributes:
        output: where its one output lies.
    """

    def __init__(
        self,
        trt: TensorRT,
        cuda: Cuda,
        plan: Path,
        stream: Stream,
        outside: Sequence[str] = (),
    ) -> None:
        """Deserialise an engine, and allocate the largest buffers that its profiles ask for.

        The buffers never move: captured graphs hold on to their addresses.

        Args:
            trt: the module.
            cuda: the module.
            plan: a verified engine; whoever calls this has made sure that there is a GPU.
            stream: where it runs.
            outside: inputs that lie in buffers of others.

        Raises:
            GpuMemoryError: the GPU has too little memory.
            PumaError: TensorRT refuses the engine.
        """
        self._trt, self._cuda, self._stream, self._name = trt, cuda, stream, plan.name
        self._messages = Messages(trt)
        require_memory(cuda, plan.stat().st_size, plan.name)
        self._runtime = trt.Runtime(self._messages.logger)
        engine = self._engine = self._deserialize(plan)
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        (self._out,) = [name for name in names if name not in inputs]
        self._types = {name: np.dtype(TYPES[engine.get_tensor_dtype(name).name]) for name in names}
        sizes = {name: self._most(name) for name in inputs if name not in outside}
        out = max(self._largest_output(n, inputs) for n in range(engine.num_optimization_profiles))
        work = int(engine.device_memory_size_v2)
        require_memory(cuda, work + out + sum(sizes.values()), f"running {plan.name}")
        self._work = Buffer(cuda, work, pinned=False)
        self._inputs = {name: Buffer(cuda, size, pinned=True) for name, size in sizes.items()}
        self.output = Buffer(cuda, out, pinned=True)
        self._ready: OrderedDict[tuple[Any, ...], Ready] = OrderedDict()
        self._captures = True

    def _deserialize(self, plan: Path) -> ICudaEngine:
        with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            free, _ = free_memory(self._cuda)
            raise PumaError(
                f"TensorRT {self._trt.__version__} cannot load {plan} ({self._messages.take()}); "
                "possible reasons: (1) another TensorRT or driver built it, (2) too little memory "
                f"({free / 1e6:.0f} MB are free); build it again: puma-edge export --trt BUNDLE"
            )
        return engine

    def rooms(self, name: str) -> list[Room]:
        """The largest count and length of an input [count, length, ...] in each profile."""
        return [
            Room(*tuple(self._engine.get_tensor_profile_shape(name, number)[2])[:2])
            for number in range(self._engine.num_optimization_profiles)
        ]

    def width(self, name: str) -> int:
        """The last extent of a tensor."""
        return int(self._engine.get_tensor_shape(name)[-1])

    def run(
        self,
        feeds: Mapping[str, NDArray[Any]],
        profile: int,
        *,
        elsewhere: Elsewhere | None = None,
        fetch: bool = True,
        marks: list[Mark] | None = None,
    ) -> None:
        """Queue one run: the shape's graph if it has been seen before.

        Args:
            feeds: the inputs that come from the host; they may change once the stream was waited
                for.
            profile: whose shapes hold them.
            elsewhere: the shapes and buffers of inputs that lie on the GPU.
            fetch: bring the output to the host.
            marks: gets four, before and after the copies to the GPU, after the engine, and after
                the copy back; such a run is not one of a graph.

        Raises:
            PumaError: the shapes are beyond the profile, or the GPU fails.
        """
        elsewhere = elsewhere or {}
        shapes = {name: value.shape for name, value in feeds.items()}
        shapes |= {name: shape for name, (shape, _) in elsewhere.items()}
        key = (profile, fetch, *sorted(shapes.items()))
        if key not in self._ready:
            self._ready[key] = self._prepare(shapes, profile, elsewhere, fetch=fetch)
        self._ready.move_to_end(key)
        while len(self._ready) > GRAPHS:
            _, oldest = self._ready.popitem(last=False)
            if oldest.graph:
                oldest.graph.close()
        for name, value in feeds.items():
            self._inputs[name].fill(value.astype(self._types[name], copy=False))
        ready = self._ready[key]
        if marks is not None:
            self._queue(ready, lambda: marks.append(self._stream.mark()))
            return
        # The first run of a shape is never captured: TensorRT still does work for it on the host.
        if ready.runs and ready.graph is None and self._captures:
            ready.graph = self._capture(ready)
        if ready.graph:
            self._stream.launch(ready.graph)
        else:
            self._queue(ready)
        ready.runs += 1

    def _prepare(
        self, shapes: Mapping[str, Shape], profile: int, elsewhere: Elsewhere, *, fetch: bool
    ) -> Ready:
        context = self._context(profile)
        context.set_device_memory(self._work.address, int(self._engine.device_memory_size_v2))
        for name, shape in shapes.items():
            if not context.set_input_shape(name, tuple(shape)):
                raise PumaError(
                    f"{self._name}: {name} of shape {tuple(shape)} is beyond profile {profile} "
                    f"({self._messages.take()}); build engines with larger profiles"
                )
        lying = {name: buffer for name, (_, buffer) in elsewhere.items()}
        for name, buffer in {**self._inputs, **lying, self._out: self.output}.items():
            context.set_tensor_address(name, buffer.address)
        copies = [
            (buffer, self._bytes(name, shapes[name])) for name, buffer in self._inputs.items()
        ]
        size = self._bytes(self._out, tuple(context.get_tensor_shape(self._out))) if fetch else 0
        return Ready(context, copies, size)

    def _queue(self, ready: Ready, mark: Callable[[], None] = lambda: None) -> None:
        mark()
        for buffer, count in ready.copies:
            self._stream.send(buffer, count)
        mark()
        if not ready.context.execute_async_v3(self._stream.handle):
            raise PumaError(f"{self._name}: TensorRT failed: {self._messages.take()}")
        mark()
        self._stream.fetch(self.output, ready.fetched)
        mark()

    def _capture(self, ready: Ready) -> Graph | None:
        try:
            return self._stream.capture(lambda: self._queue(ready))
        except PumaError as error:
            # The result is the same without; what is lost is some of the speed of small batches.
            warnings.warn(f"{self._name} runs without CUDA graphs: {error}", stacklevel=2)
            self._captures = False
            return None

    def _context(self, profile: int) -> IExecutionContext:
        kind = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(kind)
        if context is None or not context.set_optimization_profile_async(
            profile, self._stream.handle
        ):
            raise PumaError(f"{self._name}: TensorRT has no context: {self._messages.take()}")
        return context

    def _most(self, name: str) -> int:
        """Bytes of an input at its largest, in any profile."""
        profiles = range(self._engine.num_optimization_profiles)
        return max(
            self._bytes(name, tuple(self._engine.get_tensor_profile_shape(name, number)[2]))
            for number in profiles
        )

    def _largest_output(self, profile: int, inputs: Sequence[str]) -> int:
        context = self._context(profile)
        for name in inputs:
            largest = self._engine.get_tensor_profile_shape(name, profile)[2]
            context.set_input_shape(name, tuple(largest))
        return self._bytes(self._out, tuple(context.get_tensor_shape(self._out)))

    def _bytes(self, name: str, shape: Shape) -> int:
        return math.prod(int(one) for one in shape) * int(self._types[name].itemsize)
