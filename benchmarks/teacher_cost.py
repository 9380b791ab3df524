"""Stage 1 with the teacher's states kept on disk, against the recipe that runs two models.

    python benchmarks/teacher_cost.py --model shape:qwen2-vl-2b --keep-layers 12 --steps 3

Both arms have the same student, batch, dtype and gradient checkpointing, a process of their own
each, and take turns step by step. `two models` runs the full teacher beside the student in every
step. `kept states` has computed the teacher's states before (its one-off cost, also shown) and
holds the student alone. Prints JSON: medians, peak memory, and what the layer count predicts.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from puma_edge.config import SHAPE_PREFIX, StageConfig
from puma_edge.inputs import Batch
from puma_edge.losses import distillation_loss
from puma_edge.model import Checkpoint, choose_layers, prune, ret_states
from puma_edge.shapes import build_shape
from puma_edge.stages import add_lora
from puma_edge.train import open_model

TWO, KEPT = "two models", "kept states"
WARM_UP = 1  # steps that are not counted
WORDS = ["fox", "heart", "river", "bicycle", "lantern", "violin", "mountain", "umbrella"]


@dataclass(frozen=True)
class Setting:
    """What both arms share.

    Attributes:
        model: "sample", a folder, or `shape:...`.
        keep_layers: of the student.
        batch: pairs a step.
        tokens: of every text.
        dtype: of the weights; with bfloat16, steps run in mixed precision, as training does.
        lora_r: rank of the adapters.
        dropout: before them. PyTorch draws it on one CPU thread, which no layer count tells of.
        threads: CPU threads, 0 for PyTorch's choice.
        steps: that count.
    """

    model: str
    keep_layers: int
    batch: int
    tokens: int
    dtype: str
    lora_r: int
    dropout: float
    threads: int
    steps: int


def serve(arm: str, setting: Setting) -> None:
    """Set one arm up, then do a step for each line on stdin and say how long it took."""
    if setting.threads:
        torch.set_num_threads(setting.threads)
    checkpoint = _open(setting)
    batch = _texts(checkpoint, setting)
    full = len(checkpoint.card.kept_layers)
    once = 0.0
    teacher: Checkpoint | None = checkpoint
    if arm == KEPT:
        states = torch.stack([_states(checkpoint, batch)] * 2)
        started = time.perf_counter()
        states = torch.stack([_states(checkpoint, batch)] * 2)
        once = 2 * (time.perf_counter() - started)  # queries and candidates
        student, teacher = prune(checkpoint, choose_layers(full, setting.keep_layers)), None
    else:
        student = prune(_open(setting), choose_layers(full, setting.keep_layers))
    gc.collect()
    memory_before = _peak()
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    stage = StageConfig(
        batch=setting.batch,
        lora_r=setting.lora_r,
        lora_alpha=2 * setting.lora_r,
        lora_dropout=setting.dropout,
    )
    peft = add_lora(student, stage, seed=0)
    peft.gradient_checkpointing_enable({"use_reentrant": False})
    peft.enable_input_require_grads()
    adam = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-4)
    peft.train()
    share = _adapter_share(peft)
    print(json.dumps({"once": once, "layers": full, "adapters": share}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        if teacher is not None:
            states = torch.stack([_states(teacher, batch), _states(teacher, batch)])
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.dtype == "bfloat16"):
            queries, candidates = ret_states(peft, batch), ret_states(peft, batch)
        loss = distillation_loss(queries.float(), candidates.float(), states[0], states[1])
        adam.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        adam.step()
        row = {"seconds": time.perf_counter() - started, "peak": _peak(), "setup": memory_before}
        print(json.dumps({**row, "loss": loss.item()}), flush=True)


def _adapter_share(peft: nn.Module) -> float:
    """Parameters of the adapters, of those of the matrices they stand beside."""
    named = dict(peft.named_parameters())
    adapters = sum(one.numel() for name, one in named.items() if ".lora_" in name)
    matrices = sum(one.numel() for name, one in named.items() if name.endswith("base_layer.weight"))
    return adapters / matrices


def _open(setting: Setting) -> Checkpoint:
    dtype = getattr(torch, setting.dtype)
    if setting.model.startswith(SHAPE_PREFIX):
        return build_shape(setting.model, 0, dtype=dtype)
    checkpoint = open_model(setting.model)
    nn.Module.to(checkpoint.model, dtype)
    return checkpoint


def _texts(checkpoint: Checkpoint, setting: Setting) -> Batch:
    """Texts of the wanted length, all different."""
    spec, items = checkpoint.spec, []
    for number in range(setting.batch):
        text = ""
        while len(spec.encode_patches(None, text or "fox", ()).input_ids) < setting.tokens:
            text += f" {WORDS[(number + len(text)) % len(WORDS)]}"
        items.append(spec.encode_patches(None, text.strip(), ()))
    return spec.collate(items)


def _states(teacher: Checkpoint, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return ret_states(teacher.model.eval(), batch).float()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


class Arm:
    """A worker process."""

    def __init__(self, name: str, setting: Setting) -> None:
        """Start it and wait until it is ready."""
        command = [sys.executable, __file__, "--serve", name, json.dumps(asdict(setting))]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.ready: dict[str, Any] = self._answer()
        self.rows: list[dict[str, Any]] = []

    def step(self) -> None:
        """One step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.rows.append(self._answer())

    def close(self) -> None:
        """End the worker."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker stopped with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    @property
    def seconds(self) -> float:
        """The median step."""
        return statistics.median(row["seconds"] for row in self.rows[WARM_UP:])


def compare(setting: Setting) -> dict[str, Any]:
    """Both arms, turn about."""
    arms = {name: Arm(name, setting) for name in (TWO, KEPT)}
    for _ in range(WARM_UP + setting.steps):
        for arm in arms.values():
            arm.step()
    for arm in arms.values():
        arm.close()
    two, kept = arms[TWO], arms[KEPT]
    full, keep = two.ready["layers"], setting.keep_layers
    # A frozen layer costs one pass forward, one again for its checkpoint and one back.
    predicted = full / (full + 3 * keep)
    # Adapters take part in all three passes, and their own gradients are a fourth.
    with_adapters = full / (full + keep * (3 + 4 * kept.ready["adapters"]))
    saving = 1 - kept.seconds / two.seconds
    return {
        **asdict(setting),
        "seconds_per_step": {name: round(arm.seconds, 4) for name, arm in arms.items()},
        "saving": round(saving, 3),
        "predicted_saving": round(predicted, 3),
        "of_predicted": round(saving / predicted, 3),
        "predicted_with_adapters": round(with_adapters, 3),
        "of_predicted_with_adapters": round(saving / with_adapters, 3),
        "peak_gb_training": {
            name: round(arm.rows[-1]["peak"] / 1e9, 2) for name, arm in arms.items()
        },
        "peak_gb_setting_up": {
            name: round(arm.rows[-1]["setup"] / 1e9, 2) for name, arm in arms.items()
        },
        "peak_ratio": round(kept.rows[-1]["peak"] / two.rows[-1]["peak"], 3),
        # In steps of the same batch: what the states cost before the first step.
        "states_cost_once_in_steps_per_step": round(kept.ready["once"] / kept.seconds, 3),
        "total_ratio_over_2_epochs": round(
            (kept.ready["once"] + 2 * kept.seconds) / (2 * two.seconds), 3
        ),
        "torch": torch.__version__,
    }


def main() -> None:
    """Parse and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sample")
    parser.add_argument("--keep-layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--lora-r", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    given = vars(parser.parse_args())
    print(json.dumps(compare(Setting(**given)), indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], Setting(**json.loads(sys.argv[3])))
    else:
        main()
