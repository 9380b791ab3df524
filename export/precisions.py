"""The graphs of each precision, written, compared with PyTorch, and mended where they fail."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from puma_edge.bundle import Precision
from puma_edge.calibration.calibrate import Calibration, QuantSettings, calibrate
from puma_edge.calibration.qdq import Form
from puma_edge.calibration.quantize import PARTS, write_int8
from puma_edge.calibration.sensitivity import Cost, Trial, find_units, measure_costs
from puma_edge.config import SHAPE_PREFIX, ExportConfig
from puma_edge.export.fallback import Fallback, counts, keep_until_passed
from puma_edge.export.held_out import embed
from puma_edge.export.material import Material
from puma_edge.export.parity import (
    Limits,
    Parity,
    alone,
    in_company,
    judge,
    judge_halves,
    spread,
)
from puma_edge.export.precision import largest_halves, to_fp16
from puma_edge.export.probe import Probe
from puma_edge.inputs import Float32, InputSpec
from puma_edge.progress import Progress
from puma_edge.runtimes.ort import OrtEncoder

Step = Callable[[str], None]
HALVES = (Precision.FP16, Precision.INT8_TRT)
FORMS = {Precision.INT8: Form.CPU, Precision.INT8_TRT: Form.TRT}


class Reference(Protocol):
    """What PyTorch says of the probe and of what the gate looks at."""

    @property
    def probe(self) -> Probe:
        """Its items, embedded alone."""
        ...

    @property
    def judged(self) -> Float32:
        """[n, d]."""
        ...


def chosen(config: ExportConfig) -> list[Precision]:
    """The precisions a bundle will hold, fp32 always among them."""
    found = [Precision.FP32]
    found += [Precision.FP16] if config.fp16 else []
    found += [Precision.INT8] if config.int8 else []
    wants_trt = config.int8_trt or (config.trt and config.int8)
    return found + ([Precision.INT8_TRT] if wants_trt else [])


def graph_files(precision: Precision) -> dict[str, str]:
    """The names of a precision's two graphs."""
    return {part: f"{part}.{precision.value}.onnx" for part in PARTS}


def graph_bytes(folder: Path, precision: Precision) -> int:
    """Bytes of a precision's two graphs."""
    names = graph_files(precision).values()
    return sum(path.stat().st_size for name in names for path in folder.glob(f"{name}*"))


def open_encoder(folder: Path, precision: Precision) -> OrtEncoder:
    """ONNX Runtime over the graphs of a bundle that is not sealed yet."""
    names = graph_files(precision)
    return OrtEncoder(lambda: folder / names["vision"], folder / names["text"])


class Precisions:
    """Makes one precision after the other in a bundle's folder.

    Attributes:
        fallbacks: precision -> layers that went back to float.
    """

    def __init__(
        self,
        folder: Path,
        spec: InputSpec,
        material: Material,
        reference: Reference,
        config: ExportConfig,
        step: Step,
    ) -> None:
        """Work in `folder`, which holds the fp32 graphs."""
        self.fallbacks: dict[str, Fallback] = {}
        self._folder, self._spec, self._material = folder, spec, material
        self._reference, self._config, self._step = reference, config, step
        self._reports: dict[str, Any] = {}

    def make(self, precision: Precision) -> Parity:
        """Write the graphs of a precision where they are not there yet, and judge them."""
        if precision is Precision.FP16:
            self._step("converting to fp16")
            for part in PARTS:
                to_fp16(self._folder / f"{part}.fp32.onnx", self._folder / f"{part}.fp16.onnx")
        form = FORMS.get(precision)
        if form is not None:
            self._write(form, frozenset())
        parity = self._check(precision)
        if form is not None and not parity.passed:
            parity = self._mend(precision, form, parity)
        return self._check_halves(precision, parity) if precision in HALVES else parity

    def calibration_report(self) -> dict[str, Any]:
        """For the manifest: where the ranges come from, and what was done with them."""
        if not self._reports:
            return {}
        return {
            "source": self._material.source,
            **self._calibration.to_json(),
            **self._reports,
            "fallback": {name: one.to_json() for name, one in self.fallbacks.items()},
        }

    @cached_property
    def _calibration(self) -> Calibration:
        config, forms = self._config, [FORMS[one] for one in chosen(self._config) if one in FORMS]
        settings = QuantSettings(smooth=config.smooth, ranges=config.ranges)
        batches = self._material.calibration
        self._step("calibrating for int8")
        with Progress("calibrating", _readings(batches, settings)) as progress:
            return calibrate(
                self._folder, batches, settings, forms, lambda done, _: progress.update(done)
            )

    def _write(self, form: Form, kept: frozenset[str]) -> int:
        """Write the graphs of a form with some weights in float; their bytes."""
        name, folder = form.value, self._folder
        if form is Form.CPU:
            self._reports[name] = write_int8(folder, self._calibration, folder, form, kept)
        else:
            # Strongly typed: what is not INT8 is half precision.
            with TemporaryDirectory(dir=folder) as single:
                mixed = Path(single)
                self._reports[name] = write_int8(folder, self._calibration, mixed, form, kept)
                for part in PARTS:
                    to_fp16(mixed / f"{part}.{name}.onnx", folder / f"{part}.{name}.onnx")
        return graph_bytes(folder, Precision(name))

    def _check(self, precision: Precision) -> Parity:
        self._step(f"checking {precision.value} against PyTorch")
        encoder, spec, reference = (
            open_encoder(self._folder, precision),
            self._spec,
            self._reference,
        )
        items = reference.probe.items
        config, held = self._config, self._material.judged
        limits = Limits(config.parity.of(precision.value), config.max_recall_loss)
        if held is None or held is self._material.probe:
            found, pairs = alone(encoder, spec, reference.probe), reference.probe.pairs
        else:
            with Progress(f"embedding with {precision.value}", len(held.sizes)) as progress:
                found = embed(encoder, spec, held, lambda done, _: progress.update(done))
            pairs = held.pairs
        company = in_company(encoder, spec, items)
        return judge(pairs, reference.judged, found, company, precision.value, limits)

    def _check_halves(self, precision: Precision, parity: Parity) -> Parity:
        vision, text = (self._folder / name for name in graph_files(precision).values())
        items = spread(self._reference.probe.items)
        batches = [self._spec.collate([item]) for item in items]
        return judge_halves(parity, largest_halves(vision, text, batches))

    def _mend(self, precision: Precision, form: Form, failed: Parity) -> Parity:
        """Put the dearest groups back to float, a bounded number of times."""
        config = self._config
        tries = counts(len(find_units(self._folder)), config.fallback_tries, config.fallback_share)
        if not tries or config.model.startswith(SHAPE_PREFIX):
            return failed  # random weights rank by chance: nothing to mend by
        self._step(f"{precision.value} fails ({'; '.join(failed.failures)}): finding out why")
        fallback = keep_until_passed(
            failed,
            graph_bytes(self._folder, precision),
            partial(self._write, form),
            partial(self._check, precision),
            self._costs(form),
            tries,
        )
        self.fallbacks[precision.value] = fallback
        self._step(f"{precision.value}: {fallback.describe()}")
        return fallback.after

    def _costs(self, form: Form) -> list[Cost]:
        held = self._material.tuned
        trial = Trial(held.collated(self._spec), held.pairs)
        count = len(find_units(self._folder))
        with Progress("what each group of layers costs", count) as progress:
            return measure_costs(
                self._folder, self._calibration, form, trial, lambda done, _: progress.update(done)
            )


def _readings(batches: Any, settings: QuantSettings) -> int:
    images = sum(len(batch.n_patches) for batch in batches)
    once = images + sum(len(batch) for batch in batches)
    return once if settings.ranges.value == "minmax" else 2 * once
