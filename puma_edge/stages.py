"""One stage of training: pairs, batches, and transformers' Trainer with one of PUMA's losses."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from puma_edge.config import StageConfig, TrainConfig
from puma_edge.data import Dataset, SourceEncoder
from puma_edge.errors import PumaError
from puma_edge.evaluate import encode_all
from puma_edge.frozen_vision import FrozenVision
from puma_edge.inputs import Batch, Float32
from puma_edge.losses import distillation_loss, hard_temperature, mac_loss
from puma_edge.model import Checkpoint, ret_states
from puma_edge.pairs import Collator, DistinctSampler, Pair, PairBatch, Pairs
from puma_edge.progress import Progress
from puma_edge.torch_encoder import TorchEncoder

WARM_UP = 0.03  # of a stage's steps
LORA_TARGETS = r".*language_model\.layers\.\d+\..*_proj"


class StageTrainer(Trainer):
    """transformers' Trainer with one of PUMA's losses and the sampler above."""

    def __init__(
        self, *, stage: StageConfig, distil: bool, vision: FrozenVision, **given: Any
    ) -> None:
        """Take the stage's settings; `distil` chooses the loss."""
        self._stage = stage
        self._distil = distil
        self._vision = vision
        super().__init__(**given)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset = self.train_dataset
        assert isinstance(dataset, Pairs)
        return DistinctSampler(dataset.pairs, self._stage.batch, self.args.seed)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW in which decoder layer 0 may have a rate of its own."""
        if self.optimizer is None:
            first_lr = self._stage.first_layer_lr or self._stage.lr
            groups: dict[float, list[nn.Parameter]] = {}
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
        """The stage's loss of one batch; both sides go through the model."""
        batch: PairBatch = inputs["batch"]
        queries, candidates = (
            ret_states(model, side, self._vision(model, side))
            for side in (batch.queries, batch.candidates)
        )
        device = queries.device
        if self._distil:
            assert batch.teacher_queries is not None
            assert batch.teacher_candidates is not None
            return distillation_loss(
                queries.float(),
                candidates.float(),
                batch.teacher_queries.to(device),
                batch.teacher_candidates.to(device),
            )
        tau = hard_temperature(self.state.global_step / max(1, self.state.max_steps))
        return mac_loss(queries.float(), candidates.float(), batch.modalities.to(device), tau)


class StageProgress(TrainerCallback):
    """The progress bar of one stage."""

    def __init__(self, title: str) -> None:
        """Name the stage."""
        self._title = title

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Open the bar."""
        self._progress = Progress(self._title, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        """Move the bar and show loss, rate and temperature."""
        if logs and "loss" in logs:
            note = f"loss {logs['loss']:.3f} lr {logs['learning_rate']:.1e}"
            self._progress.update(state.global_step, note)
            if not math.isfinite(logs["loss"]):
                raise PumaError(f"the loss is {logs['loss']} at step {state.global_step}; lower lr")

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Close the bar."""
        self._progress.close()


def add_lora(checkpoint: Checkpoint, stage: StageConfig, seed: int) -> PeftModel:
    """LoRA on every Linear of the decoder; everything else is frozen."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=stage.lora_r,
        lora_alpha=stage.lora_alpha,
        lora_dropout=stage.lora_dropout,
        target_modules=LORA_TARGETS,
    )
    return get_peft_model(checkpoint.model, config)


def run_stage(
    checkpoint: Checkpoint,
    data: Dataset,
    pairs: Pairs,
    stage: StageConfig,
    out: Path,
    *,
    title: str,
    distil: bool,
    vision: FrozenVision,
    config: TrainConfig,
) -> PeftModel:
    """Train adapters on `pairs`, write them and the log of losses to `out`; returns the model."""
    with warnings.catch_warnings():
        # transformers 5 renames arguments that 4.57 still needs.
        warnings.simplefilter("ignore", FutureWarning)
        peft = add_lora(checkpoint, stage, config.seed)
        trainer = StageTrainer(
            stage=stage,
            distil=distil,
            vision=vision,
            model=peft,
            args=_arguments(len(pairs), stage, out, config),
            train_dataset=pairs,
            data_collator=Collator(checkpoint, data),
            callbacks=[StageProgress(title)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train()
    peft.save_pretrained(str(out))
    log = [row for row in trainer.state.log_history if "loss" in row]
    (out / "log.json").write_text(json.dumps(log) + "\n", encoding="utf-8")
    return peft


def _arguments(pairs: int, stage: StageConfig, out: Path, config: TrainConfig) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    device_batch = min(stage.batch, config.device_batch or stage.batch)
    return TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=device_batch,
        gradient_accumulation_steps=max(1, stage.batch // device_batch),
        num_train_epochs=stage.epochs,
        max_steps=stage.max_steps or -1,
        learning_rate=stage.lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(WARM_UP * total_steps(pairs, stage)),
        max_grad_norm=1.0,
        bf16=on_gpu,
        gradient_checkpointing=on_gpu,
        use_cpu=not on_gpu,
        seed=config.seed,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_drop_last=pairs >= stage.batch,
        disable_tqdm=True,
    )


def total_steps(pairs: int, stage: StageConfig) -> int:
    """Optimiser steps of a stage."""
    steps = math.ceil(stage.epochs * max(1, pairs // stage.batch))
    return min(steps, stage.max_steps) if stage.max_steps else steps


def with_teacher(
    pairs: Pairs, teacher: Checkpoint, data: Dataset, progress: Callable[[int], None]
) -> None:
    """Give each pair the full model's states at `[RET]`, before its layers are cut."""
    encoder = StateEncoder(teacher.model)
    load = SourceEncoder(teacher.spec)
    queries = [(pair.example.query, pair.instruction) for pair in pairs.pairs]
    candidates = [(data.candidates[pair.answer], None) for pair in pairs.pairs]
    states = encode_all(encoder, teacher.spec, [*queries, *candidates], load, progress)
    half = len(queries)
    pairs.pairs = [
        Pair(pair.example, pair.answer, pair.instruction, (states[row], states[half + row]))
        for row, pair in enumerate(pairs.pairs)
    ]


class StateEncoder(TorchEncoder):
    """The states themselves, not normalised: what distillation compares."""

    def encode(self, batch: Batch) -> Float32:
        """States at `[RET]` after the final norm [B, d]."""
        self._model.eval()
        with torch.no_grad():
            result: Float32 = ret_states(self._model, batch).float().cpu().numpy()
        return result
