"""Every call of TensorRT and of CUDA's runtime that is made here, as types.

Neither can be imported without its libraries, so mypy reads them here, and refuses a call that does
not stand here. `tests/test_nvidia_api.py` holds this list against NVIDIA's own bindings, names and
parameters, from TensorRT 10.3 to 11.4 and of cuda-bindings 12 and 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Shape = tuple[int, ...]


class Named(Protocol):
    """A member of an enum."""

    @property
    def name(self) -> str: ...


class NetworkDefinitionCreationFlag(Protocol):
    STRONGLY_TYPED: Any


class BuilderFlag(Protocol):
    TF32: Any


class ExecutionContextAllocationStrategy(Protocol):
    USER_MANAGED: Any


class TensorIOMode(Protocol):
    INPUT: Any


class Severity(Protocol):
    """Of `ILogger`: levels of its messages."""

    ERROR: Any
    INTERNAL_ERROR: Any


class ITensor(Protocol):
    name: str
    shape: Sequence[int]


class INetworkDefinition(Protocol):
    num_inputs: int

    def get_input(self, index: int) -> ITensor: ...


class IOptimizationProfile(Protocol):
    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None: ...


class ITimingCache(Protocol):
    def serialize(self) -> Any: ...


class IBuilderConfig(Protocol):
    def clear_flag(self, flag: Any) -> None: ...

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache: ...

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...

    def get_timing_cache(self) -> ITimingCache: ...


class Builder(Protocol):
    def create_network(self, flags: int) -> INetworkDefinition: ...

    def create_builder_config(self) -> IBuilderConfig: ...

    def create_optimization_profile(self) -> IOptimizationProfile: ...

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> Any: ...


class ParserError(Protocol):
    def desc(self) -> str: ...


class OnnxParser(Protocol):
    num_errors: int

    def parse_from_file(self, model: str) -> bool: ...

    def get_error(self, index: int) -> ParserError: ...


class IExecutionContext(Protocol):
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...

    def set_device_memory(self, memory: int, size: int) -> None: ...

    def set_input_shape(self, name: str, shape: Shape) -> bool: ...

    def set_tensor_address(self, name: str, memory: int) -> bool: ...

    def get_tensor_shape(self, name: str) -> Sequence[int]: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...


class ICudaEngine(Protocol):
    num_io_tensors: int
    num_optimization_profiles: int
    device_memory_size_v2: int

    def get_tensor_name(self, index: int) -> str: ...

    def get_tensor_mode(self, name: str) -> Any: ...

    def get_tensor_dtype(self, name: str) -> Named: ...

    def get_tensor_shape(self, name: str) -> Sequence[int]: ...

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Sequence[int]]: ...

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None: ...


class Runtime(Protocol):
    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None: ...


class TensorRT(Protocol):
    """The module `tensorrt`."""

    __version__: str
    NetworkDefinitionCreationFlag: NetworkDefinitionCreationFlag
    BuilderFlag: BuilderFlag
    ExecutionContextAllocationStrategy: ExecutionContextAllocationStrategy
    TensorIOMode: TensorIOMode
    ILogger: Any  # a class that is derived from, with `log`

    def Builder(self, logger: Any) -> Builder: ...

    def OnnxParser(self, network: INetworkDefinition, logger: Any) -> OnnxParser: ...

    def Runtime(self, logger: Any) -> Runtime: ...


class cudaMemcpyKind(Protocol):
    cudaMemcpyHostToDevice: Any
    cudaMemcpyDeviceToHost: Any


class cudaStreamCaptureMode(Protocol):
    cudaStreamCaptureModeThreadLocal: Any


class cudaError_t(Protocol):
    cudaErrorMemoryAllocation: Any


class cudaDeviceProp(Protocol):
    name: bytes | str
    major: int
    minor: int


class Cuda(Protocol):
    """The module `cuda.bindings.runtime`: each call gives (error, value), or (error,) alone."""

    cudaMemcpyKind: cudaMemcpyKind
    cudaStreamCaptureMode: cudaStreamCaptureMode
    cudaError_t: cudaError_t
    cudaStreamNonBlocking: int

    def cudaGetDeviceCount(self) -> tuple[Any, int]: ...

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, cudaDeviceProp]: ...

    def cudaGetErrorString(self, error: Any) -> tuple[Any, bytes]: ...

    def cudaGetLastError(self) -> tuple[Any]: ...

    def cudaMemGetInfo(self) -> tuple[Any, int, int]: ...

    def cudaMalloc(self, size: int) -> tuple[Any, int]: ...

    def cudaFree(self, devPtr: int) -> tuple[Any]: ...

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, int]: ...

    def cudaFreeHost(self, ptr: int) -> tuple[Any]: ...

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: Any, stream: Any
    ) -> tuple[Any]: ...

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, Any]: ...

    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any]: ...

    def cudaStreamDestroy(self, stream: Any) -> tuple[Any]: ...

    def cudaEventCreate(self) -> tuple[Any, Any]: ...

    def cudaEventRecord(self, event: Any, stream: Any) -> tuple[Any]: ...

    def cudaEventElapsedTime(self, start: Any, end: Any) -> tuple[Any, float]: ...

    def cudaEventDestroy(self, event: Any) -> tuple[Any]: ...

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> tuple[Any]: ...

    def cudaStreamEndCapture(self, stream: Any) -> tuple[Any, Any]: ...

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, Any]: ...

    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> tuple[Any]: ...

    def cudaGraphExecDestroy(self, graphExec: Any) -> tuple[Any]: ...

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any]: ...
