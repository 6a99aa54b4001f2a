# SPDX-License-Identifier: Apache-2.0
"""From the `data` part of a config to pools of sentences: tokenized, and embedded if a backbone is asked for."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from metaicl.configuration import ConfigError, as_json
from metaicl.data import sampler
from metaicl.data.pool import Pool
from metaicl.data.text import make_pools, read_out_of_scope, read_sentences
from metaicl.data.tokens import Tokenizer, hashed_words, load_tokenizer
from metaicl.experiment.progress import ProgressBar, cache_folder
from metaicl.models.bert import BertShape
from metaicl.models.bert_encoder import lower_bert
from metaicl.models.bert_weights import read_config, weights_folder
from metaicl.models.encoders import make_encoder
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
        "frozen_layers",
        "cache",
    )
    # Configs of committed results that are older than a key are read again.
    return {name: as_json(data.get(name, 0)) for name in names} | {"buckets": list(data.buckets)}


@functools.lru_cache(maxsize=2)
def stored_text(
    settings: str, place: Callable, out_of_scope: bool = False
) -> tuple[list[Pool], sampler.Store]:
    """Reads sentences, embeds them if a backbone is asked for, and puts them on the devices, once per process.

    With `out_of_scope` the last pool is of the sentences that belong to none of the data set's classes.

    Raises:
      ConfigError: for settings that do not fit together.
      FileNotFoundError, ImportError, ValueError: for data, weights or a tokenizer that cannot be used.
    """
    data = ConfigDict(json.loads(settings))
    tokenizer = checked_tokenizer(data)
    sizes = dict(longest=data.longest, buckets=data.buckets)
    pools = make_pools(read_sentences(data.dataset, data.folder), tokenizer, by=data.by, **sizes)
    if out_of_scope:
        pools += make_pools(read_out_of_scope(data.dataset, data.folder), tokenizer, by="all", **sizes)
        pools = _equally_wide(pools, tokenizer.padding)
    if data.backbone == "none":
        return pools, sampler.make_store(pools, place, padding=tokenizer.padding, widths=data.buckets)
    if data.frozen_layers:
        pools, table = _states(pools, tokenizer, data)
        return pools, sampler.make_store(pools, place, widths=data.buckets, table=table)
    lengths = np.concatenate([(pool.x != tokenizer.padding).sum(axis=1) for pool in pools])
    pools = _vectors(pools, tokenizer, data)
    return pools, sampler.make_store(pools, place)._replace(lengths=lengths)


def _equally_wide(pools: list[Pool], padding: int) -> list[Pool]:
    """The pools with rows as wide as the widest."""
    width = max(pool.x.shape[1] for pool in pools)
    pad = lambda x: np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=padding)
    return [dataclasses.replace(pool, x=pad(pool.x)) for pool in pools]


def checked_tokenizer(data: ConfigDict) -> Tokenizer:
    """The tokenizer of a config whose settings of sentences fit together; errors as `stored_text`."""
    _check(data)
    tokenizer, shape = tokenizer_of(data)
    if data.longest > shape.positions:
        raise ConfigError(f"data.longest is {data.longest}; the encoder has {shape.positions} positions.")
    return tokenizer


def _check(data) -> None:
    for name, known in (("by", ("domain", "all")), ("backbone", ("none", "bert"))):
        if data[name] not in known:
            raise ConfigError(f"data.{name} is {data[name]!r}; use {' or '.join(map(repr, known))}.")
    if data.frozen_layers and data.backbone != "bert":
        raise ConfigError(
            f"data.frozen_layers is {data.frozen_layers} and data.backbone is {data.backbone!r}: it is to be 'bert'."
        )
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


def frozen_encoder(data: ConfigDict, tokenizer: Tokenizer, width: int) -> Backbone:
    """What is computed of rows of `width` token ids beforehand, with the initial weights of `data.weights`.

    That is the vector of the whole encoder, or with `data.frozen_layers` the states of its lower layers.
    """
    settings = encoder_settings(data)
    if data.get("frozen_layers", 0):
        kept = {name: settings[name] for name in ("weights", "shape") if name in settings}
        net, name = lower_bert(data.frozen_layers, **kept), f"layer {data.frozen_layers}"
    else:
        net, name = make_encoder("bert", (width,), **settings), data.pool
    apply = lambda params, x: net.apply(params, x, jnp.ones(len(x)))
    return Backbone(net.init, apply, net.width, f"{name} {tokenizer.digest}")


def _vectors(pools: list[Pool], tokenizer: Tokenizer, data: ConfigDict) -> list[Pool]:
    """The sentences as vectors of the frozen encoder, from the cache where they are there already."""
    from metaicl.features.cache import embed_pools

    return _embedded(embed_pools, pools, tokenizer, data)


def _states(pools: list[Pool], tokenizer: Tokenizer, data: ConfigDict) -> tuple[list[Pool], np.ndarray]:
    """The sentences as rows of one table of states of the frozen layers `[m, D]`, from the cache or computed."""
    from metaicl.features.states import token_states

    return _embedded(functools.partial(token_states, padding=tokenizer.padding), pools, tokenizer, data)


def _embedded(embed: Callable, pools: list[Pool], tokenizer: Tokenizer, data: ConfigDict) -> Any:
    backbone = frozen_encoder(data, tokenizer, pools[0].x.shape[1])
    params = jax.jit(backbone.init)(jax.random.key(0))
    with ProgressBar("sentences") as bar:
        return embed(
            pools,
            backbone,
            params,
            cache_dir=cache_folder(data.cache) / "features",
            backbone_name="bert",
            widths=lambda ids: sampler.Buckets.of(ids, tokenizer.padding, data.buckets).needed(),
            progress=lambda name, done, total: bar(f"embedding {name}", done, total),
        )
