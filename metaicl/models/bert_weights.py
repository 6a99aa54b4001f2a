# SPDX-License-Identifier: Apache-2.0
"""Shapes and weights of BERT and DistilBERT from a Hugging Face folder or hub name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from metaicl.files import given_path
from metaicl.models.bert import BertShape
from metaicl.models.hub import fetched
from metaicl.models.weights import check_safetensors, load_safetensors, tensor_shapes

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of large weights, cut up into several files
_FILES = ("config.json", WEIGHTS, INDEX, "model-*-of-*.safetensors", "tokenizer.json", "vocab.txt")

# Their names for ours, below an optional prefix; `{}` is the number of a layer.
_BERT = {
    "embeddings/word": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/type": "embeddings.token_type_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
    "layer_{}/query": "encoder.layer.{}.attention.self.query",
    "layer_{}/key": "encoder.layer.{}.attention.self.key",
    "layer_{}/value": "encoder.layer.{}.attention.self.value",
    "layer_{}/attention_out": "encoder.layer.{}.attention.output.dense",
    "layer_{}/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layer_{}/feed_forward_in": "encoder.layer.{}.intermediate.dense",
    "layer_{}/feed_forward_out": "encoder.layer.{}.output.dense",
    "layer_{}/output_norm": "encoder.layer.{}.output.LayerNorm",
    "pooler": "pooler.dense",
}
_DISTILBERT = {
    "embeddings/word": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
    "layer_{}/query": "transformer.layer.{}.attention.q_lin",
    "layer_{}/key": "transformer.layer.{}.attention.k_lin",
    "layer_{}/value": "transformer.layer.{}.attention.v_lin",
    "layer_{}/attention_out": "transformer.layer.{}.attention.out_lin",
    "layer_{}/attention_norm": "transformer.layer.{}.sa_layer_norm",
    "layer_{}/feed_forward_in": "transformer.layer.{}.ffn.lin1",
    "layer_{}/feed_forward_out": "transformer.layer.{}.ffn.lin2",
    "layer_{}/output_norm": "transformer.layer.{}.output_layer_norm",
}
_NAMES = {"bert": _BERT, "distilbert": _DISTILBERT}
# Keys of config.json for ours.
_BERT_KEYS = dict(
    vocabulary="vocab_size",
    width="hidden_size",
    layers="num_hidden_layers",
    heads="num_attention_heads",
    hidden="intermediate_size",
    positions="max_position_embeddings",
)
_DISTILBERT_KEYS = _BERT_KEYS | dict(width="dim", layers="n_layers", heads="n_heads", hidden="hidden_dim")
# Heads of the tasks that the file was trained on, and tensors without weights: left in the file.
_LEFT_IN_FILE = re.compile(r"(cls|classifier|pre_classifier|qa_outputs|vocab_\w+|pooler)\b|.*\bposition_ids$")


def weights_folder(name: str | os.PathLike) -> Path:
    """The folder of the weights: a path, or the name of a model of the Hugging Face hub, which is fetched.

    Raises:
      FileNotFoundError: if it is neither; saying how to give it.
    """
    folder = given_path(name)
    if folder.is_dir():
        return folder
    text = os.fspath(name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) or text.startswith("."):
        raise FileNotFoundError(
            f"There is no folder {folder}. Give a folder with {WEIGHTS} and config.json, or a hub name as "
            "google-bert/bert-base-uncased."
        )
    return fetched(text, _FILES, f"folder with config.json and {WEIGHTS}")


def weights_file(folder: str | os.PathLike) -> Path:
    """The file of a folder's weights, or the index of several; the former where there is neither."""
    whole, index = Path(folder) / WEIGHTS, Path(folder) / INDEX
    return index if index.is_file() and not whole.is_file() else whole


def read_config(folder: str | os.PathLike) -> tuple[str, BertShape]:
    """The family (`bert`, `distilbert`) and the shape that a folder's config.json tells.

    Raises:
      FileNotFoundError: without a config.json.
      ValueError: for another family of networks, or a setting that is not carried out here.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Give the folder of a Hugging Face model.")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Download it again.") from error
    family = told.get("model_type", "bert")
    if family not in _NAMES:
        raise ValueError(f"{path} is of a {family!r} network; BERT and DistilBERT are known.")
    if (kind := told.get("position_embedding_type", "absolute")) != "absolute":
        raise ValueError(f"{path} asks for {kind!r} position embeddings; only absolute ones are known.")
    if told.get("is_decoder"):
        raise ValueError(f"{path} is of a decoder; give an encoder's.")
    keys = _BERT_KEYS if family == "bert" else _DISTILBERT_KEYS
    missing = [key for key in keys.values() if key not in told]
    if missing:
        raise ValueError(f"{path} does not tell {', '.join(missing)}. Download it again.")
    act = told.get("hidden_act" if family == "bert" else "activation", "gelu")
    return family, BertShape(
        **{ours: told[theirs] for ours, theirs in keys.items()},
        types=told.get("type_vocab_size", 2) if family == "bert" else 0,
        activation=act,
        epsilon=told.get("layer_norm_eps", 1e-12),
        padding=told.get("pad_token_id") or 0,
    )


def pretrained(params: dict, folder: Path, fresh: Sequence[str] = ()) -> dict:
    """Initial parameters with the tensors of a folder in their places, in float32.

    They come by a callback: as constants they would be compiled into every program that initialises.

    Args:
      params: as initialised at random; what is added to BERT, and the `fresh` parts, stay so.
      folder: of a Hugging Face model: config.json and model.safetensors, or the latter's parts with their index.
      fresh: names of parts that stay random, as `layer_5`.

    Raises:
      FileNotFoundError, ValueError: as `weights.check_safetensors`, before anything runs: what is missing,
        unexpected or of another shape is named as it is in the file.
    """
    flat = flatten_dict(params)
    theirs, expected = _expected(folder, {path: a.shape for path, a in flat.items() if not _is_added(path)})
    file = weights_file(folder)
    away = _left_away(params, read_config(folder)[1].layers)
    settings: dict[str, Any] = dict(
        ignored=lambda name: _is_left(name) or away(name),
        advice="the weights that the config.json beside it describes",
    )
    check_safetensors(file, expected, **settings)
    wanted = {path: name for path, name in theirs.items() if path[0] not in fresh}

    def read():
        tensors = load_safetensors(file, expected, **settings)
        return {path: _turned(path, np.asarray(tensors[name], np.float32)) for path, name in wanted.items()}

    results = {path: jax.ShapeDtypeStruct(flat[path].shape, np.float32) for path in wanted}
    return unflatten_dict(flat | jax.pure_callback(read, results, vmap_method="sequential"))


def _is_added(path: tuple[str, ...]) -> bool:
    """Whether a parameter is of the adapters, prompts or low-rank terms, which no file holds."""
    return any(re.search("adapter|lora|prompts", part) for part in path)


def _is_left(name: str) -> bool:
    return _LEFT_IN_FILE.match(_plain(name)) is not None


def _left_away(params: Mapping[str, Any], layers: int) -> Callable[[str], bool]:
    """Whether a tensor of a file is of a part of its network that `params` are without: half of an encoder."""
    there = {int(part.removeprefix("layer_")) for part in params if part.startswith("layer_")}

    def away(name):
        if found := re.match(r"(?:encoder|transformer)\.layer\.(\d+)\.", _plain(name)):
            return int(found[1]) < layers and int(found[1]) not in there
        return False

    return (
        away if "embeddings" in params else lambda name: away(name) or _plain(name).startswith("embeddings.")
    )


def _plain(name: str) -> str:
    return name.removeprefix("bert.").removeprefix("distilbert.")


def _turned(path: tuple[str, ...], tensor: Any) -> Any:
    """A kernel the other way round: torch keeps `[out, in]`."""
    return np.ascontiguousarray(tensor.T) if path[-1] == "kernel" else tensor


def _expected(folder: Path, shapes: Mapping[tuple[str, ...], tuple[int, ...]]):
    """Names in the file of our parameters by path, and shapes in the file by name."""
    family, _ = read_config(folder)
    there = tensor_shapes(weights_file(folder))
    theirs = {path: _their_name(path, family, there) for path in shapes}
    order = lambda path, shape: tuple(reversed(shape)) if path[-1] == "kernel" else tuple(shape)
    return theirs, {theirs[path]: order(path, shape) for path, shape in shapes.items()}


def _their_name(ours: tuple[str, ...], family: str, there: Mapping[str, Any]) -> str:
    """The name in a file of one of our parameters, as `("layer_0", "query", "kernel")`."""
    *scopes, leaf = ours
    number = next((s.removeprefix("layer_") for s in scopes if s.startswith("layer_")), "")
    scope = "/".join("layer_{}" if s.startswith("layer_") else s for s in scopes)
    if scope not in _NAMES[family]:
        raise ValueError(f"A {family} network has no {scope!r}: choose another way of pooling.")
    known = _NAMES[family][scope].format(number)
    # Checkpoints of whole models put the family in front; the oldest call a norm's weights gamma and beta.
    endings = {"scale": ("weight", "gamma"), "bias": ("bias", "beta")}.get(leaf, ("weight",))
    choices = [f"{prefix}{known}.{ending}" for prefix in ("", f"{family}.") for ending in endings]
    return next((name for name in choices if name in there), choices[0])
