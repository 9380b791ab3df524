"""Settings of training and of export: one frozen dataclass for each command."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

SAMPLE = "sample"
SHAPE_PREFIX = "shape:"
# PUMA's weights of stage 1: of InfoNCE, and of the two squared errors.
LABELS_WEIGHT, STATES_WEIGHT = 0.9, 0.1 * 0.05


class Ranges(str, Enum):
    """How the range of an INT8 input is chosen from what calibration data showed."""

    MINMAX = "minmax"  # everything seen
    PERCENTILE = "percentile"  # all but the outermost 0.01%
    ENTROPY = "entropy"  # least Kullback-Leibler divergence, as TensorRT's calibrator
    MSE = "mse"  # least mean square error


class Weights(str, Enum):
    """In which type a model's weights are held while it is trained; adapters are float32."""

    AUTO = "auto"  # bfloat16 on a GPU, which computes in it, float32 elsewhere
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Gate(str, Enum):
    """What a failed parity check does."""

    FAIL = "fail"
    REPORT = "report"


@dataclass(frozen=True)
class StageConfig:
    """One stage of training; the defaults are PUMA's.

    Attributes:
        batch: global batch size, in pairs.
        epochs: passes over the data; 0 leaves the stage out.
        max_steps: optimiser steps, in the place of epochs; 0 for as many as those take.
        lr: peak learning rate.
        first_layer_lr: that of decoder layer 0, 0 for the same.
        lora_r: rank.
        lora_alpha: scale.
        lora_dropout: dropout before the adapters.
        labels: weight of InfoNCE in stage 1.
        states: weight of the two squared errors of the states in stage 1.
        text_only: stage 1 sees text-to-text pairs alone; else pairs of all tasks.
        recombine: stage 1 sees the training queries' pictures and words put together anew, which
            nobody labelled: `labels` is 0 then, and `text_only` false.
        decay: how far the temperature of same-modality candidates falls in stage 2; 0 makes
            MAC-Loss plain InfoNCE.
    """

    batch: int
    epochs: float = 2.0
    max_steps: int = 0
    lr: float = 2e-4
    first_layer_lr: float = 0.0
    lora_r: int = 128
    lora_alpha: int = 256
    lora_dropout: float = 0.05
    labels: float = LABELS_WEIGHT
    states: float = STATES_WEIGHT
    text_only: bool = True
    recombine: bool = False
    decay: float = 0.5


@dataclass(frozen=True)
class TrainConfig:
    """`puma-edge train`.

    Attributes:
        model: a folder, a hub id, `shape:...`, or "sample".
        data: a folder in M-BEIR's format, or "sample".
        out: run folder; empty for `runs/<date>`.
        keep_layers: decoder layers that stay; 0 for half of them.
        with_last: keep the first k-1 and the last instead of the first k.
        layers: the layers that stay, by their numbers from 0, in the place of the two before.
        stage1: layer-pruned self-distillation.
        stage2: MAC-Loss, on all tasks.
        device_batch: pairs a device holds at once, 0 for its whole share; gradient caching makes
            the result that of the whole batch, for one more forward pass.
        save_steps: steps between two checkpoints, from which a killed run goes on.
        seed: of everything that is drawn.
        threads: CPU threads, 0 for PyTorch's own choice.
        weights: in which type the frozen weights are held.
        matryoshka: shorter embeddings that stage 2 trains too, as their dimensions (Kusupati et
            al., 2022); PUMA trains none.
        report_to: where transformers' Trainer reports besides, such as "tensorboard"; empty for
            nowhere.
        evaluate: measure recall of the teacher, the cut and the student on the test queries.
    """

    model: str = SAMPLE
    data: str = SAMPLE
    out: str = ""
    keep_layers: int = 0
    with_last: bool = False
    layers: tuple[int, ...] = ()
    stage1: StageConfig = field(
        default_factory=lambda: StageConfig(batch=288, lr=2e-4, first_layer_lr=1e-4)
    )
    stage2: StageConfig = field(
        default_factory=lambda: StageConfig(batch=600, lr=3e-4, lora_dropout=0.1)
    )
    device_batch: int = 0
    save_steps: int = 50
    seed: int = 0
    threads: int = 0
    weights: Weights = Weights.AUTO
    matryoshka: tuple[int, ...] = ()
    report_to: str = ""
    evaluate: bool = True


@dataclass(frozen=True)
class Thresholds:
    """What the parity gate asks of one precision, beside the fp32 PyTorch model.

    Attributes:
        mean_cosine: of all items compared, at least.
        worst_cosine: of the worst item, at least.
        overlap: mean share of equal first ten hits in each modality pair, at least.
        pair_recall_loss: recall lost in any modality pair, at most, in points; one query's answer
            is always allowed.
    """

    mean_cosine: float
    worst_cosine: float
    overlap: float
    pair_recall_loss: float


INT8_THRESHOLDS = Thresholds(0.97, 0.85, 0.75, 0.05)


@dataclass(frozen=True)
class ParityConfig:
    """The thresholds of each precision."""

    fp32: Thresholds = Thresholds(0.999999, 0.9999, 0.99, 0.005)
    fp16: Thresholds = Thresholds(0.9999, 0.999, 0.95, 0.02)
    int8: Thresholds = INT8_THRESHOLDS
    int8_trt: Thresholds = INT8_THRESHOLDS

    def of(self, precision: str) -> Thresholds:
        """Those of "fp32", "int8-trt" and so on."""
        thresholds: Thresholds = getattr(self, precision.replace("-", "_"))
        return thresholds


@dataclass(frozen=True)
class ExportConfig:
    """`puma-edge export`.

    Attributes:
        model: a merged model folder, a run, `shape:...`; empty for the newest finished run.
        out: the bundle's folder.
        data: held-out queries for the parity check: a folder in M-BEIR's format, or "sample";
            empty for what the run was trained on.
        keep_layers: decoder layers that stay of a model that is not cut yet; 0 for all.
        with_last: keep the first k-1 and the last instead of the first k.
        layers: the layers that stay, by their numbers from 0, in the place of the two before.
        max_pixels: largest area of an image after resizing, in pixels; 0 for the model's own.
        fp16: write FP16 graphs too.
        int8: write INT8 graphs too.
        int8_trt: write INT8 graphs in TensorRT's form too, symmetric and strongly typed.
        trt: build TensorRT engines too, where TensorRT is installed.
        calibration: folder of images and texts for the INT8 ranges; empty for the validation split.
        calibration_items: how many items are read for them.
        ranges: how the INT8 ranges are chosen.
        smooth: SmoothQuant's alpha, 0 to 1; 0 for none.
        fallback_tries: how often groups of layers may go back to float where INT8 fails the gate,
            twice as many each time; 0 for never.
        fallback_share: the largest share of the groups that may.
        gate: whether a failed parity check fails the export, or is only reported.
        max_recall_loss: largest loss of mean recall that passes, as a share.
        parity: what else the gate asks of each precision.
        judged_queries: test queries of each task and data set the gate looks at, at most.
        judged_documents: candidates of each pool, at most.
        seed: of what is drawn for shapes without weights.
    """

    model: str = ""
    out: str = "bundle"
    data: str = ""
    keep_layers: int = 0
    with_last: bool = False
    layers: tuple[int, ...] = ()
    max_pixels: int = 0
    fp16: bool = False
    int8: bool = False
    int8_trt: bool = False
    trt: bool = False
    calibration: str = ""
    calibration_items: int = 256
    ranges: Ranges = Ranges.MINMAX
    smooth: float = 0.5
    fallback_tries: int = 4
    fallback_share: float = 0.25
    gate: Gate = Gate.FAIL
    max_recall_loss: float = 0.01
    parity: ParityConfig = ParityConfig()
    judged_queries: int = 400
    judged_documents: int = 10000
    seed: int = 0
