"""CUDA's runtime through cuda-bindings: what is there, memory, a stream, captured graphs."""

from __future__ import annotations

import ctypes
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import MissingExtraError, PumaError, require
from puma_edge.runtimes.nvidia import Cuda, cudaDeviceProp

Bytes = NDArray[np.uint8]


class NoDeviceError(PumaError):
    """There is no CUDA device, or no driver for it."""


class GpuMemoryError(PumaError):
    """The GPU has too little memory."""


@dataclass(frozen=True)
class Device:
    """A GPU: its name, its compute capability without a dot ("87"), and TensorRT's version."""

    name: str
    capability: str
    version: str

    @property
    def slug(self) -> str:
        """As engines are named: "nvidia-jetson-orin-sm87-trt10.3.0"."""
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "gpu"
        return f"{name}-sm{self.capability}-trt{self.version}"


def open_cuda() -> Cuda:
    """CUDA's runtime.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
    """
    return cast(Cuda, require("cuda.bindings.runtime", "trt"))


def this_device(cuda: Cuda, version: str) -> Device:
    """The first GPU.

    Args:
        cuda: CUDA's runtime.
        version: TensorRT's.

    Raises:
        NoDeviceError: there is none, or no driver.
    """
    # Asked first: TensorRT's runtimes end the process where there is no device.
    error, count = cuda.cudaGetDeviceCount()
    if int(error) or not count:
        why = "its driver is missing or too old" if int(error) else "none was found"
        raise NoDeviceError(
            f"TensorRT {version} is installed, but there is no CUDA device ({why}; nvidia-smi, on "
            "a Jetson tegrastats, says more); choose --runtime ort"
        )
    about: cudaDeviceProp = value(cuda, cuda.cudaGetDeviceProperties(0))
    name = about.name.decode() if isinstance(about.name, bytes) else str(about.name)
    return Device(name, f"{about.major}{about.minor}", version)


def value(cuda: Cuda, result: tuple[Any, ...]) -> Any:
    """What a call gave besides its error.

    Raises:
        GpuMemoryError: there was no memory for it.
        PumaError: it failed otherwise.
    """
    error, *rest = result
    if int(error) == int(cuda.cudaError_t.cudaErrorMemoryAllocation):
        cuda.cudaGetLastError()  # or the next call would report it again
        free, total = free_memory(cuda)
        raise GpuMemoryError(short_of(None, free, f"a GPU of {total / 1e6:.0f} MB"))
    if int(error):
        _, text = cuda.cudaGetErrorString(error)
        reason = text.decode() if isinstance(text, bytes) else str(text)
        raise PumaError(f"CUDA failed: {reason} (error {int(error)})")
    return rest[0] if rest else None


def free_memory(cuda: Cuda) -> tuple[int, int]:
    """Bytes that are free on the GPU, and all it has."""
    _, free, total = cuda.cudaMemGetInfo()
    return int(free or 0), int(total or 0)


def used_memory() -> int | None:
    """Bytes taken on the GPU, by whomever; None where cuda-bindings or the GPU is missing."""
    try:
        cuda = open_cuda()
    except MissingExtraError:
        return None
    error, count = cuda.cudaGetDeviceCount()
    if int(error) or not count:
        return None
    free, total = free_memory(cuda)
    return total - free


def require_memory(cuda: Cuda, needed: int, what: str) -> None:
    """Refuse to begin what will not fit.

    Raises:
        GpuMemoryError: fewer bytes are free than needed.
    """
    free, _ = free_memory(cuda)
    if free < needed:
        raise GpuMemoryError(short_of(needed, free, what))


def short_of(needed: int | None, free: int, what: str) -> str:
    """One line about memory that is not there."""
    wants = f" needs {needed / 1e6:.0f} MB" if needed is not None else " is full"
    return (
        f"too little GPU memory: {what}{wants}, {free / 1e6:.0f} MB are free; stop what else runs "
        "there, take fp16 or int8-trt, or engines of a bundle exported with fewer --max-pixels"
    )


class Buffer:
    """Memory of the GPU, and of the host beside it, pinned, where data passes between them.

    Attributes:
        address: on the GPU.
        host: the pinned bytes; none where nothing passes.
    """

    def __init__(self, cuda: Cuda, size: int, *, pinned: bool) -> None:
        """Allocate `size` bytes; never none, so that an empty tensor has an address too."""
        size = max(size, 256)
        self.address = int(value(cuda, cuda.cudaMalloc(size)))
        # Not at exit: CUDA may be gone by then, and the driver frees what is left.
        weakref.finalize(self, cuda.cudaFree, self.address).atexit = False
        self.host: Bytes = np.empty(0, np.uint8)
        if pinned:
            address = int(value(cuda, cuda.cudaHostAlloc(size, 0)))
            weakref.finalize(self, cuda.cudaFreeHost, address).atexit = False
            pinned_bytes = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
            self.host = np.ctypeslib.as_array(pinned_bytes, (size,))

    def fill(self, array: NDArray[Any]) -> None:
        """Write an array to the pinned bytes; `Stream.send` takes it from there."""
        flat = self.host[: array.nbytes].view(array.dtype)
        np.copyto(flat.reshape(array.shape), array)

    def read(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """What `Stream.fetch` brought; the next run overwrites it."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        found: NDArray[Any] = self.host[:count].view(dtype).reshape(shape)
        return found


class Stream:
    """One queue of work.

    Attributes:
        handle: as TensorRT takes it.
    """

    def __init__(self, cuda: Cuda) -> None:
        """Create it; unlike the default stream it waits for nobody else."""
        self._cuda = cuda
        self._stream = value(cuda, cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self.handle = int(self._stream)
        weakref.finalize(self, cuda.cudaStreamDestroy, self._stream).atexit = False

    def send(self, buffer: Buffer, count: int) -> None:
        """Host to GPU, `count` bytes."""
        self._copy(buffer.address, buffer.host.ctypes.data, count, to_host=False)

    def fetch(self, buffer: Buffer, count: int) -> None:
        """GPU to host, `count` bytes."""
        self._copy(buffer.host.ctypes.data, buffer.address, count, to_host=True)

    def _copy(self, to: int, source: int, count: int, *, to_host: bool) -> None:
        if not count:
            return
        kinds = self._cuda.cudaMemcpyKind
        kind = kinds.cudaMemcpyDeviceToHost if to_host else kinds.cudaMemcpyHostToDevice
        value(self._cuda, self._cuda.cudaMemcpyAsync(to, source, count, kind, self._stream))

    def mark(self) -> Mark:
        """A place in the queue, whose time is known once the stream was waited for."""
        mark = Mark(self._cuda)
        value(self._cuda, self._cuda.cudaEventRecord(mark.event, self._stream))
        return mark

    def wait(self) -> None:
        """Until all of it is done."""
        value(self._cuda, self._cuda.cudaStreamSynchronize(self._stream))

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` would queue, without running it.

        Raises:
            PumaError: it does something that cannot be recorded.
        """
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        value(self._cuda, self._cuda.cudaStreamBeginCapture(self._stream, mode))
        try:
            work()
        finally:
            # Ended in any case: a stream that goes on recording can do nothing else.
            ended = self._cuda.cudaStreamEndCapture(self._stream)
        graph = value(self._cuda, ended)
        try:
            return Graph(self._cuda, value(self._cuda, self._cuda.cudaGraphInstantiate(graph, 0)))
        finally:
            self._cuda.cudaGraphDestroy(graph)

    def launch(self, graph: Graph) -> None:
        """Queue what was captured."""
        value(self._cuda, self._cuda.cudaGraphLaunch(graph.handle, self._stream))


class Mark:
    """A place in a stream's queue."""

    def __init__(self, cuda: Cuda) -> None:
        """Create the event that tells its time."""
        self._cuda = cuda
        self.event = value(cuda, cuda.cudaEventCreate())
        weakref.finalize(self, cuda.cudaEventDestroy, self.event).atexit = False

    def milliseconds_to(self, later: Mark) -> float:
        """What the GPU took from here to there."""
        return float(value(self._cuda, self._cuda.cudaEventElapsedTime(self.event, later.event)))


class Graph:
    """Work that was captured, ready to be launched as one."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        """Take what `cudaGraphInstantiate` gave."""
        self._cuda, self.handle = cuda, handle

    def close(self) -> None:
        """Destroy it."""
        self._cuda.cudaGraphExecDestroy(self.handle)
