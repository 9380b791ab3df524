"""What several test files need: a tokenizer, a photograph, small data, a bundle, an index of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
    trainers,
)
from tokenizers import pre_tokenizers as pre

from puma_edge.images import PixelLimits
from puma_edge.inputs import InputSpec, Positions
from puma_edge.prompts import SPECIAL_TOKENS, PromptFormat, PromptTokenizer

if TYPE_CHECKING:
    from puma_edge.calibration.calibrate import Calibration

# Qwen2's own pattern.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCES = (
    "You are a helpful assistant. system user assistant",
    "Summarize above image and sentence in one word: ",
    "Summarize above sentence in one word: ",
    "Find me an everyday image that matches the given caption.",
    "A quick brown fox jumps over the lazy dog, and the dog doesn't mind.",
    "Ein Fuchs läuft über die Straße; une renarde traverse la forêt.",
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE with Qwen2's normaliser and pattern, and the special tokens of the prompts."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(WORDS), behavior="isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(SENTENCES * 3, trainer)
    made.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return made


@pytest.fixture(scope="session")
def spec(tokenizer: Tokenizer) -> InputSpec:
    """How items become arrays with it, as for Qwen2-VL."""
    return InputSpec(PromptTokenizer(tokenizer, PromptFormat()), PixelLimits(), Positions.MROPE)


@pytest.fixture(scope="session")
def photograph() -> Path:
    """Find a real photograph, 512x600: Grace Hopper, matplotlib's sample (public domain)."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many windows, and so many shards, from a small corpus."""
    monkeypatch.setattr("puma_edge.runtimes.plan.TEXT_WINDOW", 5)
    monkeypatch.setattr("puma_edge.runtimes.plan.IMAGE_WINDOW", 3)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few dozen emoji in M-BEIR's format."""
    from puma_edge.data import load_dataset
    from puma_edge.sample import emoji_folder
    from tests.small import write_small

    return write_small(load_dataset(emoji_folder()), tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="session")
def sample_bundle(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    """The sample base cut to two layers, exported in every precision by the command itself."""
    from tests.commands import puma

    folder = tmp_path_factory.mktemp("exported")
    base = Path(__file__).parents[1] / "puma_edge" / "sample" / "base"
    done = puma(
        *("export", str(base), "--keep-layers", "2", "--data", str(small_data)),
        *("--fp16", "--int8", "--int8-trt", "--gate", "report"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder / "bundle"


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, sample_bundle: Path, photograph: Path) -> Path:
    """A folder with a bundle, a corpus of real files, and an index of it. Do not change them."""
    from tests.commands import puma

    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(sample_bundle, folder / "bundle")
    assert puma("sample", "corpus", cwd=folder).returncode == 0
    with Image.open(photograph) as picture:
        picture.resize((1733, 411)).save(folder / "corpus" / "wide screenshot.png")
        picture.convert("CMYK").save(folder / "corpus" / "scan.tif")
        picture.convert("L").rotate(90, expand=True).save(folder / "corpus" / "DSC_0001.JPG")
    done = puma("embed", "corpus", "--out", "index.npy", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def fp32_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's fp32 graphs, where calibration may work beside them and leave nothing."""
    from tests.graphs import copy_graphs

    return copy_graphs(tmp_path_factory.mktemp("fp32"))


@pytest.fixture(scope="session")
def calibration(fp32_graphs: Path) -> Calibration:
    """What calibration saw in them, for INT8 in both forms."""
    from puma_edge.calibration.calibrate import calibrate
    from puma_edge.calibration.qdq import Form
    from tests.graphs import batches, some

    return calibrate(fp32_graphs, batches(some(24, 1000)), None, tuple(Form))
