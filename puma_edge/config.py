"""Settings: one frozen dataclass per command, read from `puma-edge.toml` and the command line."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from puma_edge.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SAMPLE = "sample"
SHAPE_PREFIX = "shape:"
CONFIG_FILE = Path("puma-edge.toml")
# The commands that have settings; a table of the file is called as its command.
TABLES = (
    "sample", "train", "merge", "export", "embed", "search", "convert", "push", "bench", "eval",
    "check", "sweep", "info", "doctor", "demo",
)  # fmt: skip

T = TypeVar("T")


class Ranges(str, Enum):
    """How the range of an INT8 input is chosen from what calibration data showed."""

    MINMAX = "minmax"  # everything seen
    PERCENTILE = "percentile"  # all but the outermost 0.01%
    ENTROPY = "entropy"  # least Kullback-Leibler divergence, as TensorRT's calibrator
    MSE = "mse"  # least mean square error


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
        max_steps: optimiser steps at most, 0 for no limit.
        lr: peak learning rate.
        first_layer_lr: that of decoder layer 0, 0 for the same.
        lora_r: rank.
        lora_alpha: scale.
        lora_dropout: dropout before the adapters.
        labels: weight of InfoNCE in stage 1.
        states: weight of the two squared errors of the states in stage 1.
        text_only: stage 1 sees text-to-text pairs alone; else pairs of all tasks.
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
    labels: float = 0.9
    states: float = 0.1 * 0.05
    text_only: bool = True
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


def read_config(table: str, cls: type[T], path: Path | None = None, /, **given: Any) -> T:
    """Settings of one command: the defaults, then the file's table, then what was given.

    Args:
        table: the command's name, a table of the file.
        cls: its dataclass.
        path: the file; by default `puma-edge.toml` if it is there.
        given: values from the command line; None means not given.

    Raises:
        UsageError: the file cannot be read, or has a key that does not exist or a wrong value.
    """
    values = read_table(table, path)
    values |= {name: value for name, value in given.items() if value is not None}
    return _build(cls, values, f"[{table}]", cls())


def read_table(table: str, path: Path | None = None) -> dict[str, Any]:
    """One table of the settings' file as it stands there, empty where there is none.

    Args:
        table: a command's name.
        path: the file; by default `puma-edge.toml` if it is there.

    Raises:
        UsageError: the file cannot be read, or has a table that no command reads.
    """
    source = path or CONFIG_FILE
    if path is None and not source.is_file():
        return {}
    try:
        tables = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{source} cannot be read as settings: {error}") from None
    check_names(tables, TABLES, "table", str(source))
    values = tables.get(table, {})
    if not isinstance(values, dict):
        raise UsageError(f"{source}: {table} = {values!r} given, expected a table [{table}]")
    return values


def check_names(given: Iterable[str], known: Iterable[str], what: str, where: str) -> None:
    """See that every name given is known.

    Raises:
        UsageError: one is not.
    """
    if unknown := sorted(set(given) - set(known)):
        choices = ", ".join(sorted(known))
        raise UsageError(f"unknown {what} {unknown[0]!r} in {where}; expected one of: {choices}")


def _build(cls: type[T], values: dict[str, Any], where: str, default: Any) -> T:
    hints = typing.get_type_hints(cls)
    known = [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]
    check_names(values, known, "setting", where)
    built = {
        name: _convert(hints[name], value, f"{where} {name}", getattr(default, name))
        for name, value in values.items()
    }
    result: T = dataclasses.replace(default, **built)
    return result


def _convert(hint: Any, value: Any, where: str, default: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, where, default)  # type: ignore[arg-type]
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            choices = ", ".join(str(one.value) for one in hint)
            raise UsageError(f"{where}: {value!r} given, expected one of: {choices}") from None
    if isinstance(hint, UnionType):  # `X | None`: a file has no way to write None
        hint = next(one for one in typing.get_args(hint) if one is not type(None))
        return _convert(hint, value, where, default)
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: {value!r} given, expected a list")
        return tuple(_convert(inner, one, where, default) for one in value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        named = "a path in quotes" if hint is Path else hint.__name__
        raise UsageError(f"{where}: {value!r} given, expected {named}")
    return value
