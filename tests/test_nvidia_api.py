"""Every call listed in `runtimes/nvidia.py` against NVIDIA's own bindings.

mypy lets no other call be made, so what stands there is all that is used. The bindings' wheels
install everywhere; TensorRT's libraries do not. So the bindings are imported over empty libraries
with the few functions they link to: enough for their classes, methods and docstrings, which
pybind11 writes from the C++ signatures. Whether a call does what we think only a GPU can tell.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from puma_edge.runtimes import nvidia
from puma_edge.runtimes.trt_graph import TYPES

pytestmark = pytest.mark.extra

TENSORRT = (
    "tensorrt-cu12-bindings==10.3.0",
    "tensorrt-cu12-bindings==10.13.0.35",
    "tensorrt-cu13-bindings==10.16.1.11",
    "tensorrt-cu13-bindings==11.4.0.106",
)
CUDA = ("cuda-bindings==12.*", "cuda-bindings==13.*")
LIBRARIES = {
    "libnvinfer": (
        *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL"),
        *("createInferRuntime_INTERNAL", "getBuilderPluginRegistry", "getPluginRegistry"),
    ),
    "libnvonnxparser": (
        *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL"),
        "getNvOnnxParserVersion",
    ),
    "libnvinfer_plugin": ("initLibNvInferPlugins",),
}
# Where a type of ours lies in the module, if not under its own name.
ELSEWHERE = {"Severity": "ILogger.Severity"}
NOT_CLASSES = ("Named", "TensorRT", "Cuda")

# Run by the Python that can import the module: attribute -> its docstring, or null where it lacks.
ASK = """
import importlib, json, sys
module, names = importlib.import_module(sys.argv[1]), json.loads(sys.stdin.read())
found = {}
for name in names:
    here = module
    for part in name.split("."):
        here = getattr(here, part, None)
    if isinstance(here, property):
        here = here.fget
    found[name] = None if here is None else str(here.__doc__)
print(json.dumps({"version": getattr(module, "__version__", ""), "found": found}))
"""


def declared(cls: type) -> dict[str, list[str] | None]:
    """Members of one of our types: parameters of a call, None for a plain attribute."""
    calls = {
        name: [one for one in value.__code__.co_varnames[1 : value.__code__.co_argcount]]
        for name, value in vars(cls).items()
        if callable(value) and not name.startswith("_")
    }
    plain = [name for name in vars(cls).get("__annotations__", {}) if not name.startswith("__")]
    return {**dict.fromkeys(plain), **calls}


def types() -> dict[str, type]:
    return {
        name: value
        for name, value in vars(nvidia).items()
        if isinstance(value, type) and value.__module__ == nvidia.__name__
    }


def wanted_of_tensorrt() -> dict[str, list[str] | None]:
    """What has to be in the module: dotted name -> parameters."""
    own = {name: cls for name, cls in types().items() if not name.startswith(("cuda", "Cuda"))}
    found: dict[str, list[str] | None] = {f"DataType.{name}.name": None for name in TYPES}
    found["ILogger.log"] = ["severity", "msg"]
    for name, cls in own.items():
        if name in NOT_CLASSES:
            continue
        for member, parameters in declared(cls).items():
            found[f"{ELSEWHERE.get(name, name)}.{member}"] = parameters
    for member, parameters in declared(nvidia.TensorRT).items():
        found[member if parameters is None else f"{member}.__init__"] = parameters
    return found


def wanted_of_cuda() -> dict[str, list[str] | None]:
    found = declared(nvidia.Cuda)
    for name in (one for one in types() if one.startswith("cuda")):
        found |= {f"{name}.{member}": None for member in declared(types()[name])}
    return found


def download(requirement: str, folder: Path) -> Path:
    """The unpacked wheel."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
    done = subprocess.run(
        [*command, "--no-deps", "--only-binary", ":all:", "-d", str(folder), requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"{requirement} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder)
    return folder


def empty_libraries(folder: Path, major: str) -> Path:
    """Libraries with the right names and functions, none of which does anything."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is here to make empty libraries with")
    for name, functions in LIBRARIES.items():
        source = folder / f"{name}.c"
        source.write_text("\n".join(f"void *{one}(void) {{ return 0; }}" for one in functions))
        out = folder / f"{name}.so.{major}"
        flags = ["-shared", "-fPIC", f"-Wl,-soname,{out.name}", "-o", str(out), str(source)]
        subprocess.run([compiler, *flags], check=True)
    return folder


def ask(module: str, names: list[str], path: list[Path], **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", ASK, module],
        input=json.dumps(names),
        env={"PYTHONPATH": ":".join(map(str, path)), "PATH": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def takes(signatures: str, parameters: list[str]) -> bool:
    """Whether one of the overloads in a docstring begins with these parameters, by name."""
    for line in signatures.splitlines():
        _, opened, rest = line.partition("(")
        if not opened:
            continue
        given = [one.split(":")[0].split("=")[0].split()[-1:] for one in _arguments(rest)]
        names = [one[0] for one in given if one and one[0] != "self"]
        if names[: len(parameters)] == parameters:
            return True
    return False


def _arguments(text: str) -> list[str]:
    """Split at commas outside of brackets, up to the bracket that closes them all."""
    found, depth = [""], 0
    for letter in text:
        if letter == ")" and not depth:
            break
        depth += (letter in "([<") - (letter in ")]>")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return found


def check(wanted: dict[str, list[str] | None], found: dict[str, str | None]) -> None:
    assert sorted(name for name in wanted if found[name] is None) == []
    wrong = {
        name: (parameters, found[name])
        for name, parameters in wanted.items()
        if parameters and not takes(str(found[name]), parameters)
    }
    assert wrong == {}


@pytest.mark.parametrize("requirement", TENSORRT)
def test_tensorrt_has_every_call(requirement: str, tmp_path: Path) -> None:
    version = requirement.partition("==")[2]
    bindings = download(requirement, tmp_path)
    (stubs := tmp_path / "empty").mkdir()
    libraries = empty_libraries(stubs, version.split(".")[0])
    wanted = wanted_of_tensorrt()
    answer = ask("tensorrt_bindings", [*wanted], [bindings], LD_LIBRARY_PATH=str(libraries))
    assert answer["version"] == version
    assert len(wanted) > 45
    check(wanted, answer["found"])


@pytest.mark.parametrize("requirement", CUDA)
def test_cuda_bindings_has_every_call(requirement: str, tmp_path: Path) -> None:
    bindings = download(requirement, tmp_path)
    download("cuda-pathfinder", bindings)
    wanted = wanted_of_cuda()
    answer = ask("cuda.bindings.runtime", [*wanted], [bindings])
    assert len(wanted) > 20
    check(wanted, answer["found"])


def test_the_check_can_fail(tmp_path: Path) -> None:
    assert takes("f(self: a.B, name: str, shape: tuple[int, int]) -> bool", ["name", "shape"])
    assert takes(
        "1. f(*args)\n2. f(dst, src, size_t count, kind: K, stream)", ["dst", "src", "count"]
    )
    assert takes("f(self: a, s: S = <S.STATIC: 0>, t: int = 1) -> X", ["s", "t"])
    assert not takes("f(self: a.B, other: str) -> bool", ["name"])
    assert not takes("f() -> bool", ["name"])
    with pytest.raises(AssertionError):
        check({"gone": None}, {"gone": None})
    with pytest.raises(AssertionError):
        check({"f": ["a"]}, {"f": "f(b)"})
