"""What is installed: the package map, the wheel, the sdist, and what the edge half imports."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

from tests.checkout import ROOT, build_wheel, copy_checkout, project_files, run_python

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_FILE_BYTES = 13_000_000
MAX_WHEEL_BYTES = 20_000_000
OUTSIDE_THE_WHEEL = {"tests", "benchmarks", "docs"}

TRAINING_STACK = ("torch", "transformers", "peft", "optimum", "accelerate")
EXTRAS = (*TRAINING_STACK, "onnx", "onnx_ir", "onnxscript", "onnxruntime", "matplotlib")
# Imports every module named, and all below those that are packages, where `blocked` do not exist.
IMPORT_WITHOUT = """
import importlib, importlib.abc, pkgutil, sys

blocked, names = sys.argv[1].split(","), sys.argv[2].split(",")

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
for name in names:
    module = importlib.import_module(name)
    print(name)
    for below in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
        importlib.import_module(below.name)
        print(below.name)
"""


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def package_map(settings: dict[str, Any]) -> dict[str, str]:
    """Package -> folder."""
    found: dict[str, str] = settings["tool"]["setuptools"]["package-dir"]
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def shipped(package_map: dict[str, str]) -> set[str]:
    """Every file of the parts, by the name it has where it is installed."""
    packages = {Path(folder): package.replace(".", "/") for package, folder in package_map.items()}
    found = set()
    for name in project_files():
        folder = next((one for one in (name.parent, *name.parents) if one in packages), None)
        if folder is not None and not (ROOT / name).is_symlink():
            found.add(f"{packages[folder]}/{name.relative_to(folder).as_posix()}")
    return found


def test_the_links_are_the_package_map(package_map: dict[str, str]) -> None:
    package = ROOT / "puma_edge"
    links = {f"puma_edge.{one.name}": one for one in package.iterdir() if one.is_symlink()}
    elsewhere = {name: to for name, to in package_map.items() if not to.startswith("puma_edge")}
    assert {name: link.readlink().as_posix() for name, link in links.items()} == {
        name: f"../{folder}" for name, folder in elsewhere.items()
    }


def test_every_folder_with_code_is_a_package(
    settings: dict[str, Any], package_map: dict[str, str]
) -> None:
    code = (name for name in project_files() if name.suffix == ".py")
    folders = {one.parent.as_posix() for one in code if one.parts[0] not in OUTSIDE_THE_WHEEL}
    assert folders == set(package_map.values())
    assert set(settings["tool"]["setuptools"]["packages"]) == set(package_map)


def test_no_file_is_too_large_for_git() -> None:
    large = [name for name in project_files() if (ROOT / name).stat().st_size >= MAX_FILE_BYTES]
    assert large == []


def test_wheel_holds_the_parts_and_nothing_else(wheel: Path, shipped: set[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == shipped
    assert {
        "puma_edge/py.typed",
        "puma_edge/cli.py",
        "puma_edge/sample/emoji.json.gz",
        "puma_edge/sample/glyphs.zip",
        "puma_edge/sample/base/config.json",
    } <= shipped
    licences = {name.split("/licenses/")[1] for name in names if "/licenses/" in name}
    assert {"LICENSE", "NOTICE"} < licences
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


def test_plain_install_and_either_onnxruntime_bring_no_training_stack(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        wanted = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
    plain = [one for one in wanted if "extra ==" not in one]
    assert plain
    for name in TRAINING_STACK:
        assert not [one for one in plain if one.startswith(name)]
    engines = {one.split(";")[1].strip() for one in wanted if one.startswith("onnxruntime")}
    assert engines == {'extra == "cpu"', 'extra == "gpu"'}


def test_sdist_holds_all_that_the_wheel_is_built_from(
    checkout: Path, package_map: dict[str, str], tmp_path: Path
) -> None:
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run_python("-c", build, str(tmp_path), cwd=checkout)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {Path(*Path(one.name).parts[1:]) for one in archive.getmembers() if one.isfile()}
    parts = set(package_map.values())
    files = {one for one in project_files() if not (ROOT / one).is_symlink()}
    assert {one for one in files if one.parts[0] in parts} <= names
    top = ("pyproject.toml", "LICENSE", "NOTICE", "constraints.txt", "tests/test_packaging.py")
    assert {Path(name) for name in top} <= names


def edge_modules(settings: dict[str, Any]) -> list[str]:
    """Name the modules that the import contract keeps from the training stack."""
    contracts = settings["tool"]["importlinter"]["contracts"]
    (edge,) = (one["source_modules"] for one in contracts if one["type"] == "forbidden")
    return list(edge)


def test_edge_half_imports_without_any_extra(settings: dict[str, Any]) -> None:
    edge = [one for one in edge_modules(settings) if one != "puma_edge.calibration"]
    names = [*edge, "puma_edge.cli"]
    imported = run_python("-c", IMPORT_WITHOUT, ",".join(EXTRAS), ",".join(names)).split()
    assert set(names) | {"puma_edge.runtimes.index", "puma_edge.runtimes.ort"} <= set(imported)


def test_calibration_imports_without_the_training_stack() -> None:
    imported = run_python(
        "-c", IMPORT_WITHOUT, ",".join(TRAINING_STACK), "puma_edge.calibration"
    ).split()
    assert "puma_edge.calibration.quantize" in imported


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_optimum_pins_other_versions_only_where_it_must() -> None:
    ours, optimum = pins("constraints.txt"), pins("constraints-optimum.txt")
    differing = {name for name in ours.keys() & optimum.keys() if ours[name] != optimum[name]}
    assert differing == {"huggingface-hub", "tokenizers", "transformers"}
    assert optimum.keys() - ours.keys() == {
        *("charset-normalizer", "optimum", "optimum-onnx", "requests"),
    }
