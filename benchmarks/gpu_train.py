"""Training at a real shape on one accelerator: largest batch, time per step, memory, both stages.

    python benchmarks/gpu_train.py --model shape:qwen2-vl-2b --keep-layers 12 --out gpu_train.json

Random weights: speed and memory only. Every pair is a text, in stage 2 with a 224x224
picture whose tokens are known, as they are from a run's second epoch on. The batch is doubled until
memory is full; gradient caching (`device_batch`) takes larger ones from there. Without a CUDA
device it runs on the CPU, which only proves that it runs. The proof at a larger model than the
sample's takes two other commands, under ten minutes each on one GPU:

    python -m puma_edge.sample.train_base --minutes 8 --pairs 256 --width 512 --layers 16 \
        --exits 0 --out large/
    python benchmarks/reproduction.py --model large/ --layers 8 --seeds 1 --out ablation-large/
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from puma_edge.config import SHAPE_PREFIX, StageConfig
from puma_edge.frozen_vision import FrozenVision
from puma_edge.images import patchify
from puma_edge.inputs import Batch
from puma_edge.losses import distillation_loss, mac_loss
from puma_edge.model import Checkpoint, choose_layers, prune, ret_states
from puma_edge.shapes import build_shape
from puma_edge.stages import add_lora
from puma_edge.train import open_model

WARM_UP = 2  # steps that are not counted
WORDS = ("fox", "heart", "river", "bicycle", "lantern", "violin", "mountain", "umbrella")
FIRST_BATCH, LAST_BATCH = 8, 1024
PICTURE = 224  # pixels a side


class Bench:
    """A student with adapters, and batches for it."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Build the model on the device."""
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self._checkpoint = _open(args.model, args.keep_layers, dtype)
        nn.Module.to(self._checkpoint.model, self.device)
        self.peft = add_lora(self._checkpoint, StageConfig(batch=1), seed=0)
        self.peft.gradient_checkpointing_enable({"use_reentrant": False})
        self.peft.enable_input_require_grads()
        self.peft.train()
        self._adam = torch.optim.AdamW(
            [one for one in self.peft.parameters() if one.requires_grad], lr=1e-4
        )
        self._vision, self._tokens = FrozenVision(), args.tokens

    def batch(self, size: int, *, images: bool) -> Batch:
        """Texts of the wanted length, a picture before every one of them or none."""
        spec, random = self._checkpoint.spec, np.random.default_rng(0)
        picture = random.integers(0, 256, (PICTURE, PICTURE, 3), dtype=np.uint8)
        patches = (patchify(picture, spec.limits),) if images else ()
        items = []
        for number in range(size):
            text = ""
            while len(spec.encode_patches(None, text or "fox", ()).input_ids) < self._tokens:
                text += f" {WORDS[(number + len(text)) % len(WORDS)]}"
            items.append(spec.encode_patches(None, text.strip(), patches))
        return spec.collate(items)

    def step(self, batch: Batch, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """One step: both sides there and back, and the optimiser."""
        states = [
            ret_states(self.peft, batch, self._vision(self.peft, batch)).float() for _ in range(2)
        ]
        self._adam.zero_grad(set_to_none=True)
        torch.autograd.backward(loss(*states))
        self._adam.step()
        if self.device == "cuda":
            torch.cuda.synchronize()


def _open(model: str, keep: int, dtype: torch.dtype) -> Checkpoint:
    if model.startswith(SHAPE_PREFIX):
        return build_shape(model, keep, dtype=dtype)
    checkpoint = open_model(model)
    return prune(checkpoint, choose_layers(len(checkpoint.card.kept_layers), keep))


def measure(bench: Bench, size: int, steps: int, *, stage: int) -> dict[str, Any]:
    """Median seconds a step and the peak memory of one stage at one batch size."""
    batch = bench.batch(size, images=stage == 2)
    dimension: int = bench.peft.config.text_config.hidden_size
    teacher = torch.randn(2, size, dimension, device=bench.device)
    loss: Callable[[Tensor, Tensor], Tensor] = partial(
        distillation_loss, teacher_queries=teacher[0], teacher_candidates=teacher[1]
    )
    if stage == 2:
        modalities = torch.arange(size, device=bench.device) % 3
        loss = partial(mac_loss, modalities=modalities, tau_hard=0.018)
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(WARM_UP + steps):
        started = time.perf_counter()
        bench.step(batch, loss)
        times.append(time.perf_counter() - started)
    seconds = statistics.median(times[WARM_UP:])
    peak = torch.cuda.max_memory_allocated() if bench.device == "cuda" else None
    row: dict[str, Any] = {"stage": stage, "batch": size, "tokens": batch.input_ids.shape[1]}
    row["ms_per_step"] = round(1000 * seconds, 1)
    row["pairs_per_second"] = round(size / seconds, 1)
    row["peak_gb"] = peak and round(peak / 1e9, 2)
    return row


def main() -> None:
    """Both stages, the batch doubling until memory is full."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shape:qwen2-vl-2b")
    parser.add_argument("--keep-layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--last-batch", type=int, default=LAST_BATCH)
    parser.add_argument("--out", type=Path, default=Path("gpu_train.json"))
    args = parser.parse_args()
    bench = Bench(args)
    rows: list[dict[str, Any]] = []
    for stage in (1, 2):
        size = FIRST_BATCH
        while size <= args.last_batch:
            try:
                rows.append(measure(bench, size, args.steps, stage=stage))
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
            print(json.dumps(rows[-1]), flush=True)
            size *= 2
    name = torch.cuda.get_device_name() if bench.device == "cuda" else platform.machine()
    about = {"device": name, "torch": torch.__version__, "model": args.model}
    report = {**about, "keep_layers": args.keep_layers, "rows": rows}
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
