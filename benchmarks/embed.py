"""Folders into indexes, end to end: documents per second, beside a plain PyTorch loop.

    python benchmarks/embed.py --bundle bundle --model merged --rounds 3 --out embed.json

A corpus is written from a seed; its counts, sizes and length quantiles stand in the result. Texts,
pictures and the mix are timed apart. Each turn is a process of its own, and the backends take
turns: `ours` (this bundle, from reading the folder to the finished index), where it is installed
`openvino` (the same in OpenVINO), `torch` (fp32, eager, batches of 32 in the order of the files)
and, where it is installed, `sentence` (sentence-transformers with the merged model in bf16).
`--model shape:qwen2-vl-2b` takes that shape, cut as the bundle is. Loading a model is not timed.
`busy` is the encoder's share of the time, `scanning` that of reading and hashing the folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from puma_edge.bundle import Bundle
from puma_edge.decoding import decode
from puma_edge.images import patchify
from puma_edge.inputs import Batch, Float32
from puma_edge.runtimes.corpus import scan
from puma_edge.runtimes.documents import load
from puma_edge.runtimes.embedder import Settings, Stamp, embed_corpus
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.engine import PrecisionChoice, Runtime, open_engine

SIZES = ((640, 480), (1024, 768), (480, 640), (1280, 720), (300, 300))
WORDS = ("fox", "heart", "river", "bicycle", "lantern", "violin", "mountain", "with", "red", "old")
PLAIN_BATCH = 32


def make_corpus(root: Path, texts: int, pictures: int, seed: int) -> dict[str, Any]:
    """Write texts of log-normal length and pictures of a few sizes; say what was written."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(3.2, 0.9, texts), 2, 400).astype(int)
    for number, length in enumerate(lengths):
        path = root / "texts" / f"{number:05}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number} " + " ".join(rng.choice(WORDS, length)), encoding="utf-8")
    for number in range(pictures):
        path = root / "pictures" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        light = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        light.resize(SIZES[number % len(SIZES)]).save(path, quality=90)
    quantiles = np.quantile(lengths, [0, 0.1, 0.5, 0.9, 1]).astype(int).tolist() if texts else []
    return {
        "seed": seed,
        "texts": texts,
        "words_at_0_10_50_90_100_percent": quantiles,
        "pictures": pictures,
        "sizes": [f"{width}x{height}" for width, height in SIZES],
    }


class Timed:
    """An encoder with a clock."""

    def __init__(self, inner: Encoder) -> None:
        self.inner, self.seconds, self.padded, self.real = inner, 0.0, 0, 0
        self.provider, self.dimension = inner.provider, inner.dimension

    def encode(self, batch: Batch) -> Float32:
        """Embeddings of a batch; the time it took is added up."""
        began = time.perf_counter()
        result = self.inner.encode(batch)
        self.seconds += time.perf_counter() - began
        self.padded += batch.input_ids.size + batch.patches.shape[0] * batch.patches.shape[1]
        self.real += int(batch.attention_mask.sum()) + int(batch.n_patches.sum())
        return result


def ours(request: dict[str, Any]) -> dict[str, float]:
    """This project's whole path."""
    bundle = Bundle.open(Path(request["bundle"]))
    precision = PrecisionChoice(request["precision"])
    runtime = Runtime.OPENVINO if request["backend"] == "openvino" else Runtime.ORT
    engine = open_engine(bundle, runtime, precision, request["threads"])
    encoder, root = Timed(engine.encoder), Path(request["corpus"])
    documents = scan(root).documents
    for kind in {item.modality for item in documents}:  # opens the graphs
        first = next(item for item in documents if item.modality is kind)
        _warm(encoder, bundle, root, first)
    encoder.seconds, encoder.padded, encoder.real = 0.0, 0, 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "index.npy"
        stamp = Stamp(bundle.manifest.model_id, engine.precision.value)
        corpus = scan(root)
        scanned = time.perf_counter() - began
        report = embed_corpus(corpus, out, bundle.spec, encoder, stamp, Settings())
        seconds = time.perf_counter() - began
    return _figures(report.embedded, seconds, encoder) | {"scanning": scanned / seconds}


def plain(request: dict[str, Any]) -> dict[str, float]:
    """What one writes first: PyTorch in fp32, eager, batches in the order of the files."""
    import torch

    from puma_edge.shapes import open_baseline
    from puma_edge.torch_encoder import TorchEncoder

    torch.set_num_threads(request["threads"])
    bundle = Bundle.open(Path(request["bundle"]))
    model = open_baseline(request["model"], bundle.manifest, torch.float32).model
    encoder, root, spec = Timed(TorchEncoder(model)), Path(request["corpus"]), bundle.spec
    documents = scan(root).documents
    _warm(encoder, bundle, root, documents[0])
    encoder.seconds, encoder.padded, encoder.real = 0.0, 0, 0
    began = time.perf_counter()
    rows = []
    for start in range(0, len(documents), PLAIN_BATCH):
        entries = []
        for item in documents[start : start + PLAIN_BATCH]:
            parts = load(root, item)
            pictures = (patchify(decode(parts.image), spec.limits),) if parts.image else ()
            entries.append(spec.encode_patches(None, parts.text, pictures))
        rows.append(encoder.encode(spec.collate(entries)))
    return _figures(len(np.concatenate(rows)), time.perf_counter() - began, encoder)


def sentence(request: dict[str, Any]) -> dict[str, float]:
    """sentence-transformers, its own batches of 32, the merged model in bf16.

    It refuses to mix texts and pictures in a batch: they are given one kind after the other.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    from puma_edge.sentence_transformer import PumaModule
    from puma_edge.shapes import open_baseline

    torch.set_num_threads(request["threads"])
    manifest = Bundle.open(Path(request["bundle"])).manifest
    module = PumaModule(open_baseline(request["model"], manifest, torch.bfloat16))
    model = SentenceTransformer(modules=[module], device="cpu")
    root = Path(request["corpus"])
    documents = scan(root).documents
    began = time.perf_counter()
    texts: list[str] = []
    pictures: list[Image.Image] = []
    for item in documents:
        parts = load(root, item)
        if parts.image:
            pictures.append(Image.fromarray(decode(parts.image)))
        else:
            texts.append(parts.text or "")
    count = 0
    for inputs in (texts, pictures):
        if inputs:
            count += len(model.encode(inputs, batch_size=PLAIN_BATCH, show_progress_bar=False))
    seconds = time.perf_counter() - began
    return {"documents": count, "seconds": seconds, "per_second": count / seconds}


def _warm(encoder: Timed, bundle: Bundle, root: Path, item: Any) -> None:
    parts = load(root, item)
    pictures = (patchify(decode(parts.image), bundle.spec.limits),) if parts.image else ()
    entry = bundle.spec.encode_patches(None, parts.text, pictures)
    encoder.encode(bundle.spec.collate([entry]))


def _figures(documents: int, seconds: float, encoder: Timed) -> dict[str, float]:
    return {
        "documents": documents,
        "seconds": seconds,
        "per_second": documents / seconds,
        "busy": encoder.seconds / seconds,
        "padding": encoder.padded / encoder.real - 1,
    }


BACKENDS = {"ours": ours, "openvino": ours, "torch": plain, "sentence": sentence}


def turn(request: dict[str, Any]) -> dict[str, float]:
    """One backend on one corpus, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    name = f"{Path(request['corpus']).name} {request['backend']}"
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {figures['per_second']:.1f} documents/s", file=sys.stderr, flush=True)
    return figures


def compare(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Every backend on every corpus, in turns; medians."""
    backends = ["ours"] + (["openvino"] if find_spec("openvino") else [])
    backends += ["torch"] if given.model else []
    if given.model and find_spec("sentence_transformers"):
        backends.append("sentence")
    result: dict[str, Any] = {"threads": given.threads, "precision": given.precision}
    result["rounds"] = given.rounds
    counts = {"texts": (given.texts, 0), "pictures": (0, given.pictures)}
    counts["mix"] = (given.texts // 2, given.pictures // 2)
    for name in given.corpora:
        texts, pictures = counts[name]
        root = work / name
        found: dict[str, list[dict[str, float]]] = {backend: [] for backend in backends}
        made = make_corpus(root, texts, pictures, given.seed)
        for _ in range(given.rounds):
            for backend in backends:
                request = {"backend": backend, "corpus": str(root), **vars(given), "out": ""}
                found[backend].append(turn(request))
        medians = {
            backend: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            for backend, rows in found.items()
        }
        for row in medians.values():
            row["ours_is_faster"] = round(medians["ours"]["per_second"] / row["per_second"], 2)
        result[name] = {"corpus": made, **medians}
        if given.out is not None:  # what is measured stays, whatever becomes of the rest
            given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", default="bundle")
    parser.add_argument("--model", default="", help="the merged model; empty for none but ours")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=200)
    corpora = ("texts", "pictures", "mix")
    parser.add_argument("--corpora", nargs="+", default=corpora, choices=corpora)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        request = json.loads(sys.stdin.read())
        print(json.dumps(BACKENDS[request["backend"]](request)))
        return
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(compare(given, Path(folder)), indent=2)
    print(text)


if __name__ == "__main__":
    main()
