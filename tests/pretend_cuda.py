"""CUDA's runtime on the host's memory, for the GPU of `pretend_gpu`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any


class Error(IntEnum):
    """As CUDA numbers them."""

    SUCCESS = 0
    cudaErrorMemoryAllocation = 2  # noqa: N815
    INSUFFICIENT_DRIVER = 35
    CAPTURE = 900


@dataclass
class PretendCuda:
    """CUDA's runtime: work is done when it is queued, or recorded while a capture goes on."""

    memory: int = 1 << 30
    count: int = 1
    driver: bool = True
    captures: bool = True
    launched: int = 0
    queued: int = 0
    held: dict[int, Any] = field(default_factory=dict)
    recording: list[Callable[[], None]] | None = None
    cudaError_t = Error  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815

    def _used(self) -> int:
        return sum(len(one) for one in self.held.values())

    def _allocate(self, size: int) -> tuple[Error, int]:
        if self._used() + size > self.memory:
            return Error.cudaErrorMemoryAllocation, 0
        block = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(block)] = block
        return Error.SUCCESS, ctypes.addressof(block)

    def do(self, work: Callable[[], None]) -> None:
        """Queue it."""
        if self.recording is None:
            self.queued += 1
            work()
        else:
            self.recording.append(work)

    def cudaGetDeviceCount(self) -> tuple[int, int | None]:  # noqa: N802
        return (0, self.count) if self.driver else (35, None)

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:  # noqa: N802
        return 0, SimpleNamespace(name=b"Pretend GPU", major=8, minor=7)

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"operation not permitted when stream is capturing"

    def cudaGetLastError(self) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaMemGetInfo(self) -> tuple[int, int, int]:  # noqa: N802
        return 0, self.memory - self._used(), self.memory

    def cudaMalloc(self, size: int) -> tuple[Error, int]:  # noqa: N802
        return self._allocate(size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Error, int]:  # noqa: N802
        return self._allocate(size)

    def cudaFree(self, pointer: int) -> tuple[int]:  # noqa: N802
        del self.held[pointer]
        return (0,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemcpyAsync(  # noqa: N802
        self, dst: int, src: int, count: int, kind: int, stream: int
    ) -> tuple[int]:
        ends = (src, dst) if kind == 1 else (dst, src)
        assert all(self._block(end) is not None for end in ends)
        self.do(lambda: ctypes.memmove(dst, src, count) and None)
        return (0,)

    def _block(self, address: int) -> Any:
        """The block an address lies in; reading beside all of them would be a fault."""
        return next(
            (b for start, b in self.held.items() if start <= address < start + len(b)), None
        )

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:  # noqa: N802
        return 0, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        assert self.recording is None
        return (0,)

    def cudaEventCreate(self) -> tuple[int, list[int]]:  # noqa: N802
        return 0, []

    def cudaEventRecord(self, event: list[int], stream: int) -> tuple[int]:  # noqa: N802
        event.append(self.queued)
        return (0,)

    def cudaEventElapsedTime(self, start: list[int], end: list[int]) -> tuple[int, int]:  # noqa: N802
        return 0, end[-1] - start[-1]  # a millisecond for everything that was queued

    def cudaEventDestroy(self, event: list[int]) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:  # noqa: N802
        self.recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:  # noqa: N802
        recorded, self.recording = self.recording, None
        return (0, recorded) if self.captures else (900, None)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:  # noqa: N802
        return 0, list(graph)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[int]:  # noqa: N802
        self.launched += 1
        for work in graph:
            work()
        return (0,)

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        graph[:] = [lambda: (_ for _ in ()).throw(AssertionError("a destroyed graph ran"))]
        return (0,)
