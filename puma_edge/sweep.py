"""The best trade for this device: layers, precision, pixels and dimension against recall and speed.

Every cut of a model and every pixel budget is a bundle of its own, since both are part of a model's
identity. Recall is taken on the validation split, so that what is picked can be judged on the test
split; latency comes from a process per engine, turns interleaved over all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from puma_edge.bench import Case, processor
from puma_edge.bundle import MANIFEST, Bundle, Precision
from puma_edge.config import ExportConfig, Gate
from puma_edge.data import Dataset
from puma_edge.errors import UsageError
from puma_edge.evaluate import by_task, embed_split, mean, rank
from puma_edge.export.command import MERGED, run_export
from puma_edge.run_folder import newest_run
from puma_edge.runtimes.engine import PrecisionChoice, Runtime, open_engine
from puma_edge.runtimes.files import locked, replacing
from puma_edge.trade import Point, front
from puma_edge.train import open_data
from puma_edge.turns import run_turn

STATE, BUNDLES = "sweep.json", "bundles"
# What a bundle's own gate looks at: a sweep measures the recall of all queries itself.
JUDGED_QUERIES, JUDGED_DOCUMENTS = 50, 500
TEXT = Case("text", 1, 32, image=False)
# Larger than the largest budget: what is left of it is what the budget allows.
IMAGE = Case("image", 1, 0, image=True, edge=1024)

Step = Callable[[str], None]


@dataclass(frozen=True)
class SweepConfig:
    """`puma-edge sweep`.

    Attributes:
        models: merged models or runs, each a cut of its own; one empty name for the newest run.
        out: folder of the bundles and the measurements, from which an interrupted sweep goes on.
        data: a folder in M-BEIR's format, or "sample".
        split: whose queries recall is taken on.
        layers: further cuts of each model, without training; none for as it is.
        precisions: "fp32", "int8" and so on.
        pixels: largest areas of an image, in pixels; none for the model's own.
        dimensions: lengths of an embedding; none for the whole.
        threads: CPU threads, 0 for all.
        rounds: turns of each engine.
        seconds: measuring time of each query kind in a turn.
    """

    models: tuple[str, ...] = ("",)
    out: str = "sweep"
    data: str = "sample"
    split: str = "val"
    layers: tuple[int, ...] = ()
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.INT8)
    pixels: tuple[int, ...] = ()
    dimensions: tuple[int, ...] = ()
    threads: int = 0
    rounds: int = 3
    seconds: float = 0.5


@dataclass(frozen=True)
class SweepReport:
    """All points by latency, and on which device they were measured."""

    points: list[Point]
    device: str
    threads: int


class State:
    """What has been measured, in a file that is whole at any moment."""

    def __init__(self, folder: Path) -> None:
        """Read what an earlier sweep left."""
        self._path = folder / STATE
        self.rows: dict[str, dict[str, Any]] = {}
        if self._path.is_file():
            self.rows = json.loads(self._path.read_text(encoding="utf-8"))

    def save(self) -> None:
        """Write it anew."""
        with replacing(self._path) as file:
            file.write((json.dumps(self.rows, indent=1) + "\n").encode())


def sweep(config: SweepConfig, step: Step) -> SweepReport:
    """Export, judge and time every combination that has not been yet.

    Raises:
        PumaError: no such model or data, or another sweep is writing there.
        UsageError: a dimension or split that is not there, or nothing to measure.
    """
    out = Path(config.out)
    data = open_data(config.data)
    if not data.examples.get(config.split):
        raise UsageError(f"--split {config.split}: {data.folder} has no queries of it")
    threads = config.threads or len(os.sched_getaffinity(0))
    with locked(out, out):
        state = State(out)
        bundles = [_bundle(config, *one, step) for one in _cuts(config)]
        engines = [(bundle, precision) for bundle in bundles for precision in config.precisions]
        for bundle, precision in engines:
            row = state.rows.setdefault(_key(bundle, precision, config, threads), {"turns": []})
            _judge(row, bundle, precision, data, config, threads, step)
            state.save()
        for turn in range(config.rounds):
            for bundle, precision in engines:
                row = state.rows[_key(bundle, precision, config, threads)]
                if len(row["turns"]) <= turn:
                    step(f"timing {bundle.folder.name} {precision.value}, turn {turn + 1}")
                    row["turns"].append(_turn(bundle, precision, config, threads))
                    state.save()
        points = [
            point
            for bundle, precision in engines
            for point in _points(
                state.rows[_key(bundle, precision, config, threads)], bundle, precision
            )
        ]
    return SweepReport(front(points), processor(), threads)


def _cuts(config: SweepConfig) -> Iterator[tuple[str, int, int]]:
    """Model, layers and pixels of each bundle; 0 for the model's own."""
    for model in (one or str(newest_run()) for one in config.models):
        for layers in config.layers or (0,):
            for pixels in config.pixels or (0,):
                yield model, layers, pixels


def _bundle(config: SweepConfig, model: str, layers: int, pixels: int, step: Step) -> Bundle:
    wanted = sorted({one.value for one in config.precisions} | {Precision.FP32.value})
    settings = ExportConfig(
        model=model,
        keep_layers=layers,
        max_pixels=pixels,
        data=config.data,
        fp16=Precision.FP16 in config.precisions,
        int8=Precision.INT8 in config.precisions,
        int8_trt=Precision.INT8_TRT in config.precisions,
        gate=Gate.REPORT,
        judged_queries=JUDGED_QUERIES,
        judged_documents=JUDGED_DOCUMENTS,
    )
    name = "-".join(
        [
            *filter(None, [Path(model).parent.name, Path(model).name]),
            *([f"{layers}-layers"] if layers else []),
            *([f"{pixels}-pixels"] if pixels else []),
        ]
    )
    made_from = (model, _fingerprint(Path(model)), config.data, wanted)
    key = hashlib.sha256(repr(made_from).encode()).hexdigest()[:6]
    folder = Path(config.out) / BUNDLES / f"{name}-{key}"
    if not (folder / MANIFEST).is_file():
        step(f"exporting {folder.name}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        run_export(replace(settings, out=str(folder)), step)
    return Bundle.open(folder)


def _fingerprint(model: Path) -> list[tuple[str, int, int]]:
    """Size and time of each file of a model, or of a run's: another training of it differs here."""
    found = [path for folder in (model, model / MERGED) for path in folder.glob("*")]
    files = sorted(path for path in found if path.suffix in (".json", ".safetensors"))
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _key(bundle: Bundle, precision: Precision, config: SweepConfig, threads: int) -> str:
    """What a measurement hangs on; measurements of other settings stay in the file beside it."""
    model_id, device = bundle.manifest.model_id, processor()
    return " ".join((model_id, precision.value, config.data, config.split, str(threads), device))


def _judge(
    row: dict[str, Any],
    bundle: Bundle,
    precision: Precision,
    data: Dataset,
    config: SweepConfig,
    threads: int,
    step: Step,
) -> None:
    """Recall at every dimension that is not known yet; embedding is done once for all of them."""
    whole = bundle.manifest.dimension
    wanted = config.dimensions or (whole,)
    if wrong := [one for one in wanted if not 1 <= one <= whole]:
        raise UsageError(f"--dim {wrong[0]}: {bundle.folder} embeds in {whole} dimensions")
    known = row.setdefault("recall", {})
    missing = [one for one in wanted if str(one) not in known]
    row["dimensions"] = list(wanted)
    if not missing:
        return
    step(f"recall of {bundle.folder.name} {precision.value}")
    engine = open_engine(bundle, Runtime.AUTO, PrecisionChoice(precision.value), threads)
    embedded = embed_split(engine.encoder, bundle.spec, data, config.split)
    for one in missing:
        known[str(one)] = mean(by_task(rank(embedded, dimension=one)))


def _turn(
    bundle: Bundle, precision: Precision, config: SweepConfig, threads: int
) -> dict[str, Any]:
    done = run_turn(
        {
            "bundle": str(bundle.folder),
            "backend": f"ort-{precision.value}",
            "model": "",
            "threads": threads,
            "seconds": config.seconds,
            "cases": [asdict(TEXT), asdict(IMAGE)],
        }
    )
    times = {name: 1e3 * float(np.median(one["seconds"])) for name, one in done["cases"].items()}
    return {**times, "peak_bytes": done["peak_bytes"]}


def _points(row: dict[str, Any], bundle: Bundle, precision: Precision) -> list[Point]:
    manifest = bundle.manifest
    names = manifest.graphs[precision.value].values()
    files = {path for name in names for path in bundle.folder.glob(f"{name}*")}
    return [
        Point(
            bundle=str(bundle.folder),
            layers=len(manifest.kept_layers),
            precision=precision.value,
            pixels=manifest.limits.max_pixels,
            dimension=dimension,
            recall=row["recall"][str(dimension)],
            text_ms=float(np.median([turn[TEXT.name] for turn in row["turns"]])),
            image_ms=float(np.median([turn[IMAGE.name] for turn in row["turns"]])),
            peak_bytes=max(turn["peak_bytes"] for turn in row["turns"]),
            file_bytes=sum(path.stat().st_size for path in files),
        )
        for dimension in row["dimensions"]
    ]
