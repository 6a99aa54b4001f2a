# SPDX-License-Identifier: Apache-2.0
"""From the `data` and `task` parts of a config to what is trained and tested on."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from metaicl.configuration import ConfigError, as_json
from metaicl.data import sampler, splits
from metaicl.data.pool import Pool
from metaicl.episode import TaskSpec
from metaicl.experiment import texts, unlabelled
from metaicl.experiment.backbones import features, load_backbone
from metaicl.experiment.episodic import check_points, episodic
from metaicl.experiment.formulas import formulas_problem
from metaicl.experiment.functions import mixture_problem, sinusoids_problem
from metaicl.experiment.parts import Problem, TestSet
from metaicl.experiment.progress import ProgressBar, cache_folder
from metaicl.experiment.splitting import offsets_of, split_pools
from metaicl.files import given_path


def make_problem(config: ConfigDict, place: Callable) -> Problem:
    """Builds the problem of a config; equal configs share one.

    Args:
      config: with `data`, `task` and `evaluate`.
      place: puts a tree of host arrays onto the devices.

    Raises:
      ConfigError, ValueError, FileNotFoundError: for data that is not there or does not fit the task.
    """
    if config.data.kind not in _PROBLEMS:
        raise ConfigError(f"data.kind is {config.data.kind!r}; there are {', '.join(_PROBLEMS)}.")
    if config.evaluate.get("out_of_scope", 0) and config.data.kind != "text":
        raise ConfigError(
            f"evaluate.out_of_scope is of sentences, and data.kind is {config.data.kind!r}: set it to 0."
        )
    unlabelled.check(config.data, config.task)
    check_points(config.data, config.evaluate)
    parts = {name: as_json(config[name]) for name in ("data", "task", "evaluate")}
    return _memoised_problem(json.dumps(parts), place)


@functools.lru_cache(maxsize=64)
def _memoised_problem(parts: str, place: Callable) -> Problem:
    config = ConfigDict(json.loads(parts))
    return _PROBLEMS[config.data.kind](config.data, config.task, config.evaluate, place)


def _album(data, task, evaluation, place) -> Problem:
    """Episodes of an album; `data.split` says what training and test do not share."""
    wanted = data.get("train_on", ())
    _check_train_on(data, wanted)
    chooses = data.split == "one_set"  # among the data sets, and not in their parts
    own = as_json(data) if chooses else {k: v for k, v in as_json(data).items() if k != "train_on"}
    pools, store, parts, split_by = _split_album(json.dumps({"data": own, "task": as_json(task)}), place)
    if wanted and not chooses:
        _refuse_unknown(wanted, [pool.name for pool in parts.train])
        parts = parts._replace(train=[pool for pool in parts.train if pool.name in wanted])
    if not unlabelled.wanted(task):
        return _of_parts(pools, store, parts, split_by, data, task, evaluation)
    problem = _of_parts(pools, store, parts._replace(train=[]), split_by, data, task, evaluation)
    frozen = _frozen(json.dumps(_reading(data)), place)
    images = _stored_album(json.dumps(_reading(data) | {"backbone": "none"}), place)[1] if frozen else store
    train = unlabelled.training(images, parts.train, task, frozen)
    return problem._replace(train=train, pools=parts.train)


def _text(data, task, evaluation, place) -> Problem:
    """Episodes of sentences; `data.split` says what training and test do not share."""
    outsiders = int(evaluation.get("out_of_scope", 0))
    reading = json.dumps(texts.reading(data))
    pools, store = texts.stored_text(reading, place, bool(outsiders))
    classes = pools[:-1] if outsiders else pools
    parts, split_by = split_pools(classes, data, task)
    problem = _of_parts(classes, store, parts, split_by, data, task, evaluation)
    if not outsiders:
        return problem
    more = dict(store=store, pool=pools[-1], seed=evaluation.seed, items=outsiders)
    added = [
        h if h.setting else h._replace(with_outsiders=sampler.with_outsiders(h.source, **more))
        for h in problem.test
    ]
    return problem._replace(test=added)


def _of_parts(pools, store, parts, split_by, data, task, evaluation) -> Problem:
    if data.split == "supervised":
        return _supervised(store, pools, parts, evaluation, task)
    return episodic(store, parts, split_by, task, evaluation)


@functools.lru_cache(maxsize=2)
def _split_album(settings: str, place: Callable):
    """The album, its store, its parts and what they are split by; shared by problems that differ in `train_on`."""
    given = ConfigDict(json.loads(settings))
    pools, store = _stored_album(json.dumps(_reading(given.data)), place)
    parts, split_by = split_pools(pools, given.data, given.task)
    return pools, store._replace(offsets=offsets_of(pools)), parts, split_by


@functools.lru_cache(maxsize=2)
def _frozen(reading: str, place: Callable) -> tuple[Any, Any] | None:
    """The backbone and its parameters on the devices, or None; one object for all problems, which share programs."""
    frozen = load_backbone(ConfigDict(json.loads(reading)))
    return None if frozen is None else (frozen[0], place(frozen[1]))


def _check_train_on(data, wanted: Sequence[str]) -> None:
    """Refuses data sets to train on that there are not, before the album is read."""
    if wanted and data.split not in ("within", "images", "one_set"):
        raise ConfigError(
            f"data.train_on names data sets to train on, and data.split={data.split!r} chooses them by itself: use "
            "'images', 'within' or 'one_set', or leave data.train_on empty."
        )
    if wanted:
        _refuse_unknown(wanted, album_names(data))


def _refuse_unknown(wanted: Sequence[str], known: Sequence[str]) -> None:
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.0)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"data.train_on has {name!r}, which is no data set that can be trained on here.{hint} There are: "
                f"{', '.join(known)}."
            )


def whole_pools(data: ConfigDict, place: Callable) -> list[Pool]:
    """The data sets of an album before any split, read once per process."""
    return _stored_album(json.dumps(_reading(data)), place)[0]


def album_names(data: ConfigDict) -> list[str]:
    """The names of the data sets that `data` of a config reads; opens no image.

    Raises:
      FileNotFoundError: if there is no album, or it has no data set.
    """
    from metaicl.data.meta_album import list_datasets
    from metaicl.data.procedural import EMBEDDED_DOMAINS

    more = [given_path(data.big_set).resolve().name] if data.get("big_set", "") else []
    if data.datasets:
        return [*data.datasets, *more]
    own = sum(EMBEDDED_DOMAINS.values(), ()) if data.album == "embedded" else list_datasets(data.album)
    return [*own, *more]


def _published(data, task, evaluation, place) -> Problem:
    """Episodes of a data set that comes with its own parts for training, validation and test."""
    parts, store = _stored_split(json.dumps(as_json(data)), place)
    split_by = {pool.name: "classes" for part in parts for pool in part}
    # Other splits have other test classes: what is measured on them must not be paired or averaged.
    suffix = f"_{data.split}_split" if data.get("split") else ""
    return episodic(store, parts, split_by, task, evaluation, suffix)


def _supervised(store, pools, parts, evaluation, task) -> Problem:
    """One classifier over all classes of all data sets, tested on images it never saw."""
    firsts = dict(
        zip((p.name for p in pools), np.cumsum([0, *(len(p.classes) for p in pools)]), strict=False)
    )
    shape, dtype = store.item
    spec = TaskSpec("classify", shape, dtype, sum(len(p.classes) for p in pools))
    if spec.num_outputs < 2:
        raise ConfigError(f"{pools[0].name} has one class, so nothing can be learned of it: leave it out.")

    def source(chosen, seed, items):
        return sampler.labelled_items(store, chosen, firsts, seed=seed, items=items)

    def held(pool, seed):
        n = len(pool.classes)
        drawn = source([pool], seed, task.test_queries)
        return TestSet(pool.name, pool.domain, n, "images", spec.num_outputs, 0, task.test_queries, drawn)

    return Problem(
        spec,
        lambda seed: source(parts.train, seed, task.queries),
        [held(pool, evaluation.seed + 1) for pool in parts.validation],
        [held(pool, evaluation.seed) for pool in parts.test],
    )


_PROBLEMS = {
    "album": _album,
    "formulas": formulas_problem,
    "functions": mixture_problem,
    "published": _published,
    "sinusoids": sinusoids_problem,
    "text": _text,
}


def _reading(data) -> dict:
    """The part of `data` that decides what is read; folds differ in the rest only."""
    names = ("album", "cache", "image_size", "backbone", "weights", "datasets", "skip_bad")
    more = {"embedded": as_json(data.embedded), "big_set": data.get("big_set", "")}
    return {name: as_json(data[name]) for name in names} | more


@functools.lru_cache(maxsize=2)
def _stored_album(reading: str, place: Callable) -> tuple[list[Pool], sampler.Store]:
    """Reads an album, embeds it if a backbone is asked for, and puts it on the devices, once per process."""
    pools = album_pools(ConfigDict(json.loads(reading)))
    return pools, sampler.make_store(pools, place)


def album_pools(data: ConfigDict) -> list[Pool]:
    """The data sets of an album, as `data` of a config says: images, or the features of a frozen backbone."""
    frozen = load_backbone(data)  # what is wrong with it is said before an album is read or drawn
    pools = _embedded_pools(data) if data.album == "embedded" else _read_pools(data)
    return pools if frozen is None else features(pools, data, frozen)


@functools.lru_cache(maxsize=2)
def _stored_split(settings: str, place: Callable) -> tuple[splits.Split, sampler.Store]:
    """Reads a data set with its published split and puts it on the devices, once per process.

    Its parts share one name, and their rows run on from one part to the next.
    """
    data = ConfigDict(json.loads(settings))
    if data.reader not in _READERS:
        raise ConfigError(f"data.reader is {data.reader!r}; there are {', '.join(_READERS)}.")
    with ProgressBar("images") as bar:
        split = _READERS[data.reader](data, lambda name, done, total: bar(f"reading {name}", done, total))
    pools = [pool for part in split for pool in part]
    x = np.concatenate([np.asarray(pool.x) for pool in pools])
    return split, sampler.Store(place({"x": x}), {pools[0].name: 0})


def _omniglot(data, progress) -> splits.Split:
    from metaicl.data.omniglot import read_omniglot

    settings = dict(split=data.split, image_size=data.image_size, seed=data.split_seed, fetch=data.download)
    return read_omniglot(data.folder, progress=progress, **settings)


def _csv_splits(data, progress) -> splits.Split:
    from metaicl.data.split_folders import read_csv_splits

    settings = dict(name=data.name, domain=data.domain, image_size=data.image_size, skip_bad=data.skip_bad)
    return read_csv_splits(data.folder, progress=progress, **settings)


def _cifar_fs(data, progress) -> splits.Split:
    from metaicl.data.split_folders import read_cifar_fs

    settings = dict(image_size=data.image_size, skip_bad=data.skip_bad)
    return read_cifar_fs(data.folder, progress=progress, **settings)


_READERS: dict[str, Callable[..., splits.Split]] = {
    "omniglot": _omniglot,
    "csv_splits": _csv_splits,
    "cifar_fs": _cifar_fs,
}


def _embedded_pools(data) -> list[Pool]:
    from metaicl.data.procedural import embedded_album

    with ProgressBar("album") as bar:
        return embedded_album(
            cache_folder(data.cache),
            image_size=data.image_size,
            datasets=data.datasets or None,
            progress=lambda done, total: bar("building the embedded album", done, total),
            **data.embedded,
        )


def _read_pools(data) -> list[Pool]:
    from metaicl.data.images import decode_pool
    from metaicl.data.meta_album import read_album, read_dataset

    with ProgressBar("images") as bar:
        pools = read_album(
            data.album,
            image_size=data.image_size,
            skip_bad=data.skip_bad,
            datasets=data.datasets or None,
            progress=lambda name, done, total: bar(f"checking {name}", done, total),
        )
        if big := data.get("big_set", ""):
            sizes = dict(image_size=data.image_size, skip_bad=data.skip_bad, domain="big set")
            pools.append(
                read_dataset(
                    big, progress=lambda name, done, total: bar(f"checking {name}", done, total), **sizes
                )
            )
        if data.backbone != "none":
            return pools
        return [decode_pool(p, lambda name, done, total: bar(f"decoding {name}", done, total)) for p in pools]
