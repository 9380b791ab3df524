"""TensorRT: engines built where they serve, pinned buffers, one CUDA graph per shape bucket."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import cast

import numpy as np

from puma_edge.bundle import Bundle, Precision
from puma_edge.errors import require
from puma_edge.feeds import text_feeds, vision_feeds
from puma_edge.inputs import Batch, Float32
from puma_edge.runtimes.buckets import Room, bucket_of, pad, pad_windows, split, take
from puma_edge.runtimes.cuda import Buffer, Device, Mark, Stream, open_cuda, this_device
from puma_edge.runtimes.nvidia import Cuda, TensorRT
from puma_edge.runtimes.plans import best_precision, find_plan
from puma_edge.runtimes.trt_graph import TrtGraph

NO_IMAGES = Room(0, 0)


class Gpu:
    """TensorRT, CUDA's runtime, and the device they see.

    Attributes:
        trt: the module.
        cuda: the module.
        device: the first GPU.
    """

    def __init__(self, trt: TensorRT, cuda: Cuda) -> None:
        """Look for the device, before anything is deserialised.

        Raises:
            NoDeviceError: there is none.
        """
        self.trt, self.cuda = trt, cuda
        self.device: Device = this_device(cuda, str(trt.__version__))


def open_gpu() -> Gpu:
    """TensorRT on the first GPU.

    Raises:
        MissingExtraError: TensorRT or cuda-bindings is not installed.
        NoDeviceError: there is no CUDA device.
    """
    trt = cast(TensorRT, require("tensorrt", "trt"))
    return Gpu(trt, open_cuda())


class TrtEncoder:
    """A bundle's two engines on one stream.

    Attributes:
        provider: "trt:", the GPU, its compute capability and TensorRT's version.
        precision: of its engines.
        dimension: length of an embedding.
    """

    def __init__(self, bundle: Bundle, precision: Precision | None, gpu: Gpu) -> None:
        """Load the text engine; the vision engine waits for the first image.

        Args:
            bundle: with engines for this device.
            precision: one of theirs; None for the fastest.
            gpu: the opened GPU.

        Raises:
            NoPlanError: no engine fits this device.
            GpuMemoryError: the GPU has too little memory.
            PumaError: an engine is damaged, of another graph, or TensorRT refuses it.
        """
        self.provider = f"trt:{gpu.device.slug}"
        self.precision = precision or best_precision(bundle, gpu.device)
        self._bundle, self._gpu = bundle, gpu
        self._merged = bundle.manifest.limits.merge_size**2
        self._stream = Stream(gpu.cuda)
        self._text = self._load("text", outside=("image_tokens",))
        self._rooms = self._text.rooms("input_ids")
        self._nothing = Buffer(gpu.cuda, 0, pinned=False)
        self.dimension = self._text.width("sentence_embedding")
        self._token_width = self._text.width("image_tokens")

    @cached_property
    def _vision(self) -> TrtGraph:
        return self._load("vision")

    def _load(self, part: str, outside: Sequence[str] = ()) -> TrtGraph:
        gpu = self._gpu
        plan = find_plan(self._bundle, gpu.device, part, self.precision)
        return TrtGraph(gpu.trt, gpu.cuda, plan, self._stream, outside)

    def stages(self, batch: Batch) -> dict[str, float]:
        """Milliseconds that the GPU copies in, computes and copies out for a batch, without graphs.

        Both engines' together; what the host does meanwhile is not in it.

        Raises:
            PumaError: as `encode`.
        """
        marks: list[Mark] = []
        self._run(batch, marks)
        runs = [marks[first : first + 4] for first in range(0, len(marks), 4)]
        return {
            name: sum(run[place].milliseconds_to(run[place + 1]) for run in runs)
            for place, name in enumerate(("copy_in", "compute", "copy_out"))
        }

    def encode(self, batch: Batch) -> Float32:
        """Embeddings [B, dimension] of a batch, L2-normalised.

        A batch larger than the engines' profiles is run in parts.

        Raises:
            PumaError: one item alone is beyond the profiles, or the GPU fails.
        """
        return self._run(batch)

    def _run(self, batch: Batch, marks: list[Mark] | None = None) -> Float32:
        vision = self._vision.rooms("patches")[0] if len(batch.n_patches) else NO_IMAGES
        parts = split(batch, self._rooms, vision, self._merged)
        rows = [self._encode(take(batch, part, self._merged), vision, marks) for part in parts]
        return np.concatenate(rows)

    def _encode(self, batch: Batch, vision: Room, marks: list[Mark] | None) -> Float32:
        bucket, profile = bucket_of(batch, self._rooms, vision)
        padded = pad(batch, bucket, self._merged)
        rows, tokens = 0, self._nothing
        if bucket.images:
            # What it gives stays on the GPU, and is the text engine's input where it lies.
            seen = vision_feeds(padded)
            if batch.tower.window:
                seen = pad_windows(seen, self._vision.rooms("window_patches")[0].count)
            self._vision.run(seen, 0, fetch=False, marks=marks)
            rows, tokens = bucket.images * (bucket.patches // self._merged), self._vision.output
        feeds = text_feeds(padded, np.zeros((0, 0), np.float32))
        del feeds["image_tokens"]
        lies = {"image_tokens": ((rows, self._token_width), tokens)}
        self._text.run(feeds, profile, elsewhere=lies, marks=marks)
        self._stream.wait()
        found = self._text.output.read((bucket.items, self.dimension), np.float32)
        return np.array(found[: len(batch)])
