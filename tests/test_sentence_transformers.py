"""A merged folder in sentence-transformers itself, in an environment that has it."""

from __future__ import annotations

import json
import shutil
import site
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from puma_edge.inputs import Item
from puma_edge.model import load
from puma_edge.model_card import write_modules
from puma_edge.sample import base_folder
from puma_edge.torch_encoder import TorchEncoder
from tests.checkout import run_python

ENCODE = """
import json, sys
import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer
from puma_edge.sentence_transformer import PumaModule

folder, photograph = sys.argv[1:]
picture = Image.open(photograph)
ours = SentenceTransformer(modules=[PumaModule.load(folder)])
named = SentenceTransformer(folder, trust_remote_code=True)
found = {}
for name, model in (("ours", ours), ("named", named)):
    found[name] = {
        "text": model.encode(["a fox", "Regenschirm"]).tolist(),
        "image": model.encode([picture, photograph and Image.open(photograph)]).tolist(),
        "both": model.encode([{"text": "in blue", "image": picture}]).tolist(),
    }
found["named"]["query"] = named.encode_query(["a fox"]).tolist()
print(json.dumps(found))
"""

pytestmark = pytest.mark.extra


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This environment's packages and sentence-transformers beside them."""
    environment = tmp_path_factory.mktemp("sentence") / "venv"
    run_python("-m", "venv", "--without-pip", str(environment))
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    program = environment / "bin" / "python"
    install = ("install", "--quiet", "-c", "constraints.txt", "sentence-transformers>=6")
    run_python("-m", "pip", "--disable-pip-version-check", "--python", str(program), *install)
    return program


def test_the_same_embeddings_as_ours(python: Path, photograph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    shutil.copytree(base_folder(), folder)
    write_modules(folder)
    done = subprocess.run(
        [str(python), "-c", ENCODE, str(folder), str(photograph)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    checkpoint = load(str(folder))
    with Image.open(photograph) as file:
        pixels = np.asarray(file.convert("RGB"))
    instruction = checkpoint.card.instructions["text"]
    items = {
        "text": [Item("a fox"), Item("Regenschirm")],
        "image": [Item(None, (pixels,))] * 2,
        "both": [Item("in blue", (pixels,))],
        "query": [Item("a fox", instruction=instruction)],
    }
    encoder, spec = TorchEncoder(checkpoint.model), checkpoint.spec
    for one in ("ours", "named"):
        for kind, values in found[one].items():
            expected = encoder.encode(spec.collate([spec.encode(item) for item in items[kind]]))
            np.testing.assert_allclose(np.asarray(values), expected, atol=1e-3)
