"""Training at a real shape on one accelerator: largest batch, time per step, memory, both stages.

    python benchmarks/gpu_train.py --model shape:qwen2-vl-2b --keep-layers 12 --out gpu_train.json

Random weights: speed and memory only. The model, its weights' type, the autocast and the losses
are those of `puma-edge train`. Every pair is a text, in stage 2 with a 224x224 picture, whose
tokens are computed in each step, and in rows of their own known, as they are from a run's second
epoch on while there is room for them. The batch is doubled until memory is full; then gradient
caching (`device_batch`) takes one four times as large as the last that fitted, in parts of a
quarter of it. Without a CUDA device it runs on the CPU, which only proves that it runs. The proof
at a larger model than the sample's takes two other commands, under ten minutes each on one GPU:

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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from puma_edge.config import SHAPE_PREFIX, StageConfig
from puma_edge.frozen_vision import FrozenVision
from puma_edge.grad_cache import cached_backward
from puma_edge.images import patchify
from puma_edge.inputs import Batch
from puma_edge.losses import distillation_loss, mac_loss
from puma_edge.model import Checkpoint, choose_layers, prune
from puma_edge.shapes import build_shape
from puma_edge.stage_trainer import StateModel
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
        self._known, self._tokens = FrozenVision(), args.tokens
        self._models = {room: StateModel(self.peft, vision) for room, vision in
                        ((True, self._known), (False, FrozenVision(room=0)))}  # fmt: skip

    def batch(self, size: int, *, images: bool) -> Batch:
        """Texts of the wanted length, a picture before every one of them or none."""
        spec, random = self._checkpoint.spec, np.random.default_rng(0)
        items = []
        for number in range(size):
            picture = random.integers(0, 256, (PICTURE, PICTURE, 3), dtype=np.uint8)
            patches = (patchify(picture, spec.limits),) if images else ()
            text = ""
            while len(spec.encode_patches(None, text or "fox", ()).input_ids) < self._tokens:
                text += f" {WORDS[(number + len(text)) % len(WORDS)]}"
            items.append(spec.encode_patches(None, text.strip(), patches))
        return spec.collate(items)

    def step(
        self,
        parts: Sequence[Batch],
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        known: bool,
    ) -> None:
        """One step: all parts of both sides there and back, cached if several; the optimiser."""
        model = self._models[known]

        def states_of(part: Batch) -> Tensor:
            with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
                states: Tensor = model(part)[0]
            return states

        def loss_of(states: Sequence[Tensor]) -> Tensor:
            half = len(states) // 2
            queries, candidates = torch.cat(list(states[:half])), torch.cat(list(states[half:]))
            return loss(queries.float(), candidates.float())

        self._adam.zero_grad(set_to_none=True)
        both = [*parts, *parts]
        if len(parts) > 1:
            cached_backward(both, states_of, loss_of, torch.autograd.backward)
        else:
            torch.autograd.backward(loss_of([states_of(part) for part in both]))
        self._adam.step()
        if self.device == "cuda":
            torch.cuda.synchronize()


def _open(model: str, keep: int, dtype: torch.dtype) -> Checkpoint:
    if model.startswith(SHAPE_PREFIX):
        return build_shape(model, keep, dtype=dtype)
    checkpoint = open_model(model, dtype)
    return prune(checkpoint, choose_layers(len(checkpoint.card.kept_layers), keep))


def measure(
    bench: Bench, size: int, steps: int, *, stage: int, known: bool = False, device_batch: int = 0
) -> dict[str, Any]:
    """Median seconds a step and the peak memory of one stage at one batch size."""
    part = bench.batch(device_batch or size, images=stage == 2)
    parts = [part] * (size // len(part))
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
        bench.step(parts, loss, known=known)
        times.append(time.perf_counter() - started)
    seconds = statistics.median(times[WARM_UP:])
    peak = torch.cuda.max_memory_allocated() if bench.device == "cuda" else None
    row: dict[str, Any] = {"stage": stage, "batch": size, "tokens": part.input_ids.shape[1]}
    row |= {"device_batch": device_batch, "image_tokens_known": known if stage == 2 else None}
    row["ms_per_step"] = round(1000 * seconds, 1)
    row["pairs_per_second"] = round(size / seconds, 1)
    row["peak_gb"] = peak and round(peak / 1e9, 2)
    return row


def doubled(first: int, last: int) -> Iterator[int]:
    """`first`, twice that, and so on up to `last`."""
    while first <= last:
        yield first
        first *= 2


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
    for stage, known in ((1, False), (2, False), (2, True)):
        run = partial(measure, bench, steps=args.steps, stage=stage, known=known)
        fitted = 0
        for size in doubled(FIRST_BATCH, args.last_batch):
            try:
                rows.append(run(size))
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
            fitted = size
            print(json.dumps(rows[-1]), flush=True)
        if fitted:
            rows.append(run(4 * fitted, device_batch=fitted // 4))
            print(json.dumps(rows[-1]), flush=True)
    name = torch.cuda.get_device_name() if bench.device == "cuda" else platform.machine()
    about = {"device": name, "torch": torch.__version__, "model": args.model}
    report = {**about, "keep_layers": args.keep_layers, "rows": rows}
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
