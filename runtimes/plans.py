"""Which engine file serves on this device: names matched, contents verified, refusals explained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puma_edge.bundle import Bundle, Precision, sha256
from puma_edge.errors import PumaError
from puma_edge.runtimes.cuda import Device

ENGINES = "engines"
PARTS = ("vision", "text")
# The CPU's INT8 form has zero points, which TensorRT refuses. Fastest first.
SERVED = (Precision.INT8_TRT, Precision.FP16, Precision.FP32)


class NoPlanError(PumaError):
    """The bundle has no engine that this device may run."""


@dataclass(frozen=True)
class PlanName:
    """What an engine's file name says: `<gpu>-sm<cc>-trt<version>.<part>.<precision>.plan`."""

    device: str
    part: str
    precision: str

    @classmethod
    def parse(cls, path: Path) -> PlanName | None:
        """Read a name; None where it is not one of ours."""
        device, _, rest = path.name.removesuffix(".plan").rpartition(".")
        device, _, part = device.rpartition(".")
        known = {precision.value for precision in SERVED}
        if path.suffix != ".plan" or not device or part not in PARTS or rest not in known:
            return None
        return cls(device, part, rest)


def plan_file(device: Device, part: str, precision: Precision) -> str:
    """The name of an engine's file; those of other devices lie beside it."""
    return f"{device.slug}.{part}.{precision.value}.plan"


def built_from(bundle: Bundle, part: str, precision: Precision) -> dict[str, str]:
    """What an engine of one of the bundle's graphs is known by: the model, and the graph's files.

    Weights beside a graph are a file of their own: the graph's says nothing of them.
    """
    graph = bundle.manifest.graphs.get(precision.value, {}).get(part, "")
    names = {graph, f"{graph}.data"}
    files = {name: digest for name, digest in bundle.manifest.files.items() if name in names}
    return {"model_id": bundle.manifest.model_id, **files}


def has_plans(bundle: Bundle, precision: Precision) -> bool:
    """Whether there are engines of a precision at all, of whatever device."""
    return any(one.precision == precision.value for one in _names(bundle))


def best_precision(bundle: Bundle, device: Device) -> Precision:
    """The fastest precision with engines for this device.

    Raises:
        NoPlanError: there is none.
    """
    names = _names(bundle)
    for precision in SERVED:
        if all(PlanName(device.slug, part, precision.value) in names for part in PARTS):
            return precision
    raise NoPlanError(refusal(bundle.folder, names, device, "", ""))


def find_plan(bundle: Bundle, device: Device, part: str, precision: Precision) -> Path:
    """The verified engine of one graph, for this device.

    Raises:
        NoPlanError: there is none, or one of another GPU or TensorRT.
        PumaError: it was built from another graph, or damaged.
    """
    path = bundle.folder / ENGINES / plan_file(device, part, precision)
    if not path.is_file():
        raise NoPlanError(refusal(bundle.folder, _names(bundle), device, part, precision.value))
    about = _read(path.with_suffix(".json"))
    again = f"build it again: puma-edge export --trt {bundle.folder}"
    if about.get("built_from") != built_from(bundle, part, precision):
        raise PumaError(f"{path} was built from another {part} graph than the bundle's; {again}")
    if about.get("plan") != sha256(path):
        raise PumaError(f"{path} is not the file that was built; {again}")
    return path


def refusal(folder: Path, names: list[PlanName], device: Device, part: str, precision: str) -> str:
    """Why no engine fits: none at all, none of this precision, of another GPU or TensorRT."""
    build = f"build them on this device: puma-edge export --trt {folder}"
    near = [one for one in names if precision in ("", one.precision) and part in ("", one.part)]
    if not near:
        have = ", ".join(sorted({one.precision for one in names if one.device == device.slug}))
        of = f" in {precision}" if precision else ""
        return f"{folder} has no TensorRT engines{of} (here there are: {have or 'none'}); {build}"
    gpu, _, version = device.slug.rpartition("-trt")
    reasons = []
    for slug in sorted({one.device for one in near}):
        other_gpu, _, other = slug.rpartition("-trt")
        wrong = [f"another GPU ({other_gpu})"] * (other_gpu != gpu)
        wrong += [f"another TensorRT ({other})"] * (other != version)
        reasons.append(f"{slug}: {' and '.join(wrong) or 'its other graph is missing'}")
    return (
        f"{folder} has no TensorRT engine for {gpu} and TensorRT {version}, and engines run only "
        f"where they were built; found {'; '.join(reasons)}; {build}"
    )


def _names(bundle: Bundle) -> list[PlanName]:
    found = sorted((bundle.folder / ENGINES).glob("*.plan"))
    return [name for path in found if (name := PlanName.parse(path))]


def _read(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PumaError(
            f"{path} cannot be read ({error}), and tells which graph an engine is of; build it "
            "again: puma-edge export --trt"
        ) from None
    return about if isinstance(about, dict) else {}
