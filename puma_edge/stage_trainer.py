"""transformers' Trainer with PUMA's losses: large batches in parts, over ranks, with a bar."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from puma_edge.config import StageConfig
from puma_edge.errors import PumaError
from puma_edge.frozen_vision import FrozenVision
from puma_edge.grad_cache import cached_backward
from puma_edge.inputs import Batch
from puma_edge.losses import (
    TAU_NORM,
    distillation_loss,
    hard_temperature,
    mac_loss,
    matryoshka,
    other_answers,
)
from puma_edge.model import ret_states
from puma_edge.pair_batches import PairBatch
from puma_edge.progress import Progress

CHECKPOINT, COMPLETE = "checkpoint-", "complete"


class StateModel(nn.Module):
    """A model whose forward is what training needs: batches in, states at `[RET]` out.

    Being a module, it is what accelerate wraps for several ranks and for mixed precision.
    """

    def __init__(self, model: PeftModel, vision: FrozenVision) -> None:
        """Take a model with adapters and what remembers its vision tower's tokens."""
        super().__init__()
        self.model = model
        self._vision = vision

    def forward(self, *parts: Batch) -> tuple[Tensor, ...]:
        """The states [B, d] of each part."""
        return tuple(ret_states(self.model, part, self._vision(self.model, part)) for part in parts)


class StageTrainer(Trainer):
    """transformers' Trainer with one of PUMA's losses."""

    def __init__(self, *, stage: StageConfig, dimensions: Sequence[int] = (), **given: Any) -> None:
        """Take the stage's settings; batches with a teacher's states get stage 1's loss.

        MAC-Loss is taken of the first `dimensions` of the embeddings too.
        """
        self._stage = stage
        self._dimensions = dimensions
        self._tau = 0.0
        super().__init__(**given)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW in which decoder layer 0 may have a rate of its own."""
        if self.optimizer is None:
            first_lr = self._stage.first_layer_lr or self._stage.lr
            # The stage's own rate comes first: the first group's is what Trainer logs.
            groups: dict[float, list[nn.Parameter]] = {self._stage.lr: []}
            assert self.model is not None
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    lr = first_lr if ".layers.0." in name else self._stage.lr
                    groups.setdefault(lr, []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [{"params": parameters, "lr": lr} for lr, parameters in groups.items()],
                betas=(0.9, 0.98),
                eps=1e-7,
                weight_decay=0.0,
            )
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The stage's loss of one batch; all of its parts go through the model in one call."""
        batch: PairBatch = inputs["batch"]
        return self._loss(batch, model(*batch.parts))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One batch there and back; part by part, with cached gradients, where it asks for that."""
        batch: PairBatch = inputs["batch"]
        if not batch.cached:
            whole: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return whole
        model.train()

        return cached_backward(
            batch.parts,
            lambda part: model(part)[0],
            lambda states: self._loss(batch, states),
            self.accelerator.backward,
            # Ranks exchange gradients once, when all parts have been added up.
            before_last=lambda: self.accelerator.no_sync(model),
        )

    def _loss(self, batch: PairBatch, states: Sequence[Tensor]) -> Tensor:
        queries, candidates = batch.join(states)
        device = queries.device
        also_right = other_answers(batch.positives.to(device), batch.answers.to(device))
        if batch.teacher is not None:
            teacher = batch.teacher.to(device)
            return distillation_loss(
                queries.float(),
                candidates.float(),
                teacher[0],
                teacher[1],
                also_right,
                self._stage.labels,
                self._stage.states,
            )
        progress = self.state.global_step / max(1, self.state.max_steps)
        self._tau = hard_temperature(progress, self._stage.decay)
        loss = partial(
            mac_loss,
            modalities=batch.modalities.to(device),
            tau_hard=self._tau,
            also_right=also_right,
        )
        return matryoshka(loss, queries.float(), candidates.float(), self._dimensions)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what the Trainer does, and the temperatures of the step."""
        if self._tau and "loss" in logs:
            logs = {**logs, "tau_hard": self._tau, "tau_norm": TAU_NORM}
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the adapters alone: the rest of the model is where it was loaded from."""
        self._states().model.save_pretrained(output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        adapters = load_peft_weights(resume_from_checkpoint, device="cpu")
        set_peft_model_state_dict(self._states().model, adapters)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        # PyTorch and safetensors tell of a full disk in types of their own.
        except (OSError, RuntimeError, SafetensorError) as error:
            raise PumaError(
                f"cannot write a checkpoint to {self.args.output_dir} ({error}); free some space "
                "and run the same command again: it goes on from the checkpoint before"
            ) from error

    def _states(self) -> StateModel:
        model = self.accelerator.unwrap_model(self.model)
        assert isinstance(model, StateModel)
        return model


class CompleteMark(TrainerCallback):
    """Marks a checkpoint once all its files are written: a kill may come between two of them."""

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Mark the checkpoint of this step, to which every rank has written its part."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"{CHECKPOINT}{state.global_step}" / COMPLETE).touch()


def last_checkpoint(stage: Path) -> str | None:
    """The newest complete checkpoint of a stage's folder."""
    found = [path.parent for path in stage.glob(f"{CHECKPOINT}*/{COMPLETE}")]
    steps = {int(path.name.removeprefix(CHECKPOINT)): str(path) for path in found}
    return steps[max(steps)] if steps else None


class StageProgress(TrainerCallback):
    """The progress bar of one stage."""

    def __init__(self, title: str, batch: int) -> None:
        """Name the stage, and say how many pairs a step takes."""
        self._title, self._batch = title, batch
        self._progress: Progress | None = None

    def __enter__(self) -> StageProgress:
        """The callback itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar, however training ended."""
        if self._progress is not None:
            self._progress.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Open the bar."""
        self._progress = Progress(self._title, state.max_steps)
        self._start, self._first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        """Move the bar and show loss, rate, temperatures and speed."""
        if logs and "loss" in logs:
            note = f"loss {logs['loss']:.3f} lr {logs['learning_rate']:.1e}"
            if "tau_hard" in logs:
                note += f" tau {logs['tau_hard']:.3f}/{logs['tau_norm']:.3f}"
            pairs = self._batch * (state.global_step - self._first)
            note += f" {pairs / (time.monotonic() - self._start):.0f} pairs/s"
            if self._progress is not None:
                self._progress.update(state.global_step, note)
            # Told before a checkpoint of this step would be written.
            for name, value in (("loss", logs["loss"]), ("gradient", logs.get("grad_norm", 0.0))):
                if not math.isfinite(value):
                    raise PumaError(f"the {name} is {value} at step {state.global_step}; lower lr")
