# SPDX-License-Identifier: Apache-2.0
"""From the `data` part of a config to pools of sentences: tokenized, and embedded if a backbone is asked for."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from metaicl.configuration import ConfigError, as_json
from metaicl.data import sampler
from metaicl.data.pool import Pool
from metaicl.data.text import make_pools, read_sentences
from metaicl.data.tokens import Tokenizer, hashed_words, load_tokenizer
from metaicl.experiment.progress import ProgressBar, cache_folder
from metaicl.models.bert import BertShape
from metaicl.models.bert_weights import read_config, weights_folder
from metaicl.models.network import make_encoder
from metaicl.models.squeezenet import Backbone


def reading(data) -> dict:
    """The part of `data` that decides what is read; folds differ in the rest only."""
    names = (
        "dataset",
        "folder",
        "by",
        "longest",
        "weights",
        "fresh_layers",
        "vocabulary",
        "shape",
        "pool",
        "backbone",
        "cache",
    )
    return {name: as_json(data[name]) for name in names} | {"buckets": list(data.buckets)}


@functools.lru_cache(maxsize=2)
def stored_text(settings: str, place: Callable) -> tuple[list[Pool], sampler.Store]:
    """Reads sentences, embeds them if a backbone is asked for, and puts them on the devices, once per process.

    Raises:
      ConfigError: for settings that do not fit together.
      FileNotFoundError, ImportError, ValueError: for data, weights or a tokenizer that cannot be used.
    """
    data = ConfigDict(json.loads(settings))
    _check(data)
    tokenizer, shape = tokenizer_of(data)
    if data.longest > shape.positions:
        raise ConfigError(f"data.longest is {data.longest}; the encoder has {shape.positions} positions.")
    sentences = read_sentences(data.dataset, data.folder)
    pools = make_pools(sentences, tokenizer, longest=data.longest, buckets=data.buckets, by=data.by)
    if data.backbone == "none":
        return pools, sampler.make_store(pools, place, padding=tokenizer.padding, widths=data.buckets)
    pools = _vectors(pools, tokenizer, data)
    return pools, sampler.make_store(pools, place)


def _check(data) -> None:
    for name, known in (("by", ("domain", "all")), ("backbone", ("none", "bert"))):
        if data[name] not in known:
            raise ConfigError(f"data.{name} is {data[name]!r}; use {' or '.join(map(repr, known))}.")
    if data.longest < 2 or any(b < 1 for b in data.buckets):
        raise ConfigError(
            f"data.longest={data.longest}, data.buckets={data.buckets}: give tokens of a sentence."
        )


def tokenizer_of(data: ConfigDict | Mapping[str, Any]) -> tuple[Tokenizer, BertShape]:
    """The tokenizer and shape of the weights in `data.weights`; without weights, hashed words and `data.shape`."""
    if not data["weights"]:
        shape = BertShape(**as_json(data["shape"]), vocabulary=data["vocabulary"])
        return hashed_words(data["vocabulary"]), shape
    folder = weights_folder(data["weights"])
    _, shape = read_config(folder)
    try:
        return load_tokenizer(folder, vocabulary=shape.vocabulary, padding=shape.padding), shape
    except ImportError as error:  # it says what to install
        raise ConfigError(str(error)) from error


def encoder_settings(data: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """`encoder_settings` of the encoder `bert` that fits the sentences of `data`."""
    if data["weights"]:
        return dict(weights=data["weights"], pool=data["pool"], fresh_layers=data["fresh_layers"])
    return dict(shape=as_json(data["shape"]) | {"vocabulary": data["vocabulary"]}, pool=data["pool"])


def _vectors(pools: list[Pool], tokenizer: Tokenizer, data: ConfigDict) -> list[Pool]:
    """The sentences as vectors of the frozen encoder, from the cache where they are there already."""
    from metaicl.features.cache import embed_pools

    net = make_encoder("bert", pools[0].x.shape[1:], **encoder_settings(data))
    backbone = Backbone(
        net.init,
        lambda params, x: net.apply(params, x, jnp.ones(len(x))),
        net.width,
        f"{data.pool} {tokenizer.digest}",
    )
    params = jax.jit(net.init)(jax.random.key(0))
    with ProgressBar("sentences") as bar:
        return embed_pools(
            pools,
            backbone,
            params,
            cache_dir=cache_folder(data.cache) / "features",
            backbone_name="bert",
            widths=lambda ids: sampler.Buckets.of(ids, tokenizer.padding, data.buckets).needed(),
            progress=lambda name, done, total: bar(f"embedding {name}", done, total),
        )
