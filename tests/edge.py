"""A small tokenizer, a deterministic encoder and folders of files: for tests of the edge half."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from puma_edge.images import PixelLimits
from puma_edge.inputs import Batch, InputSpec, Positions
from puma_edge.prompts import SPECIAL_TOKENS, PromptFormat, PromptTokenizer
from puma_edge.runtimes.corpus import scan
from puma_edge.runtimes.embedder import Report, Settings, Stamp, embed_corpus
from puma_edge.runtimes.writer import SCHEMA, Header, dump_header

DIMENSION = 24
STAMP = Stamp("model-a", "fp32")


@lru_cache(maxsize=1)
def small_tokenizer() -> Tokenizer:
    """Byte-level BPE with the special tokens of the prompts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["Summarize above image and sentence in one word: a fox"], trainer)
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return made


def small_spec(max_pixels: int = 16 * 28 * 28, max_text_tokens: int = 40) -> InputSpec:
    """Small pictures and short texts."""
    prompt = PromptFormat(max_text_tokens=max_text_tokens)
    limits = PixelLimits(max_pixels=max_pixels)
    return InputSpec(PromptTokenizer(small_tokenizer(), prompt), limits, Positions.MROPE)


class HashEncoder:
    """Random projections of an item's tokens and patches, one item at a time.

    Attributes:
        batches: items of each batch that came.

    """

    provider = "test:numpy"
    dimension = DIMENSION

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self._tokens = rng.standard_normal((1024, DIMENSION))
        self._pixels = rng.standard_normal((588, DIMENSION)) / 255
        self.batches: list[int] = []

    def encode(self, batch: Batch) -> NDArray[np.float32]:
        self.batches.append(len(batch))
        merged = batch.patches.shape[1] // 4 or 1
        rows = []
        for ids, mask, index in zip(
            batch.input_ids, batch.attention_mask, batch.image_index, strict=True
        ):
            real = ids[mask == 1]
            state = (self._tokens[real] * np.linspace(1, 2, len(real))[:, None]).sum(0)
            for image in sorted({int(row) // merged for row in index[mask == 1]}):
                if image < len(batch.n_patches):
                    pixels = batch.patches[image, : batch.n_patches[image]].astype(np.float64)
                    state = state + 30 * (pixels @ self._pixels).mean(0)
            rows.append(state / np.linalg.norm(state))
        return np.asarray(rows, np.float32)


def picture(seed: int, width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    """Draw a smooth picture of a mode, different for each seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Write a picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def fill(root: Path, files: Mapping[str, bytes | str | list[object]]) -> Path:
    """Write files: bytes and texts as they are, lists as JSONL."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(f"{json.dumps(line)}\n" for line in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    root.mkdir(parents=True, exist_ok=True)
    return root


def mixed(root: Path, texts: int = 12, images: int = 6) -> Path:
    """Make a small corpus of every kind, with an equal pair of texts and one broken image."""
    files: dict[str, bytes | str | list[object]] = {
        f"texts/{n:03}.txt": f"text number {n} " + "and more " * (n % 7) for n in range(texts)
    }
    files |= {f"images/{n:03}.png": encoded(picture(n, 30 + 9 * n)) for n in range(images)}
    files |= {"pairs/a.jpg": encoded(picture(90), "JPEG"), "pairs/a.txt": "with words"}
    files |= {"copy.txt": "text number 0 ", "broken.png": encoded(picture(1))[:60]}
    files["lines.jsonl"] = [{"text": "one"}, {"image": "pairs/a.jpg", "text": "two", "id": "x"}]
    return fill(root, files)


def write_rows(out: Path, vectors: NDArray[Any], metadata: Sequence[object] = ()) -> Path:
    """Write an index of these rows, as `embed` would: texts and pictures in turn, in folders."""
    count, width = vectors.shape
    np.save(out, vectors)
    header = Header(
        "model-a", "fp32", "p", width, str(vectors.dtype), count, "c", count, count, 0, 0
    )
    out.with_suffix(".json").write_bytes(dump_header(header))
    columns = {
        "id": [f"id-{n}" for n in range(count)],
        "path": [f"{'ab'[n // 2 % 2]}/{n}.{('txt', 'png')[n % 2]}" for n in range(count)],
        "modality": [("text", "image")[n % 2] for n in range(count)],
        "hash": [f"{n:064x}" for n in range(count)],
        "text": [f"text {n}" for n in range(count)],
        "metadata": [json.dumps(one) for one in metadata] or [""] * count,
    }
    pq.write_table(pa.table(columns, schema=SCHEMA), out.with_suffix(".parquet"), row_group_size=64)
    return out


def embed(root: Path, out: Path, settings: Settings | None = None, stamp: Stamp = STAMP) -> Report:
    """Scan and embed with the test encoder."""
    return embed_corpus(scan(root), out, small_spec(), HashEncoder(), stamp, settings)
