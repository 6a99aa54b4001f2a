# SPDX-License-Identifier: Apache-2.0
"""From the `data` and `task` parts of a config to what is trained and tested on."""

from __future__ import annotations

import difflib
import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from metaicl.configuration import ConfigError, as_json
from metaicl.data import sampler, splits
from metaicl.data.pool import Pool
from metaicl.episode import TaskSpec
from metaicl.experiment import texts
from metaicl.experiment.functions import mixture_problem, sinusoids_problem
from metaicl.experiment.parts import Problem, TestSet
from metaicl.experiment.progress import ProgressBar, cache_folder


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
    shared = {"data": {k: v for k, v in as_json(data).items() if k != "train_on"}, "task": as_json(task)}
    pools, store, parts, split_by = _split_album(json.dumps(shared), place)
    if wanted:
        _refuse_unknown(wanted, [pool.name for pool in parts.train])
        parts = parts._replace(train=[pool for pool in parts.train if pool.name in wanted])
    return _of_parts(pools, store, parts, split_by, data, task, evaluation)


def _text(data, task, evaluation, place) -> Problem:
    """Episodes of sentences; `data.split` says what training and test do not share."""
    outsiders = int(evaluation.get("out_of_scope", 0))
    reading = json.dumps(texts.reading(data))
    pools, store = texts.stored_text(reading, place, bool(outsiders))
    classes = pools[:-1] if outsiders else pools
    parts, split_by = _split(classes, data, task)
    problem = _of_parts(classes, store, parts, split_by, data, task, evaluation)
    bands = _of_lengths(store, parts, split_by, task, evaluation)
    problem = problem._replace(test=[*problem.test, *bands])
    if not outsiders:
        return problem
    more = dict(store=store, pool=pools[-1], seed=evaluation.seed, items=outsiders)
    added = [
        h if h.setting else h._replace(with_outsiders=sampler.with_outsiders(h.source, **more))
        for h in problem.test
    ]
    return problem._replace(test=added)


def _of_lengths(store, parts, split_by, task, evaluation) -> list[TestSet]:
    """Test sets of sentences of the bands of lengths that `evaluation.lengths` ends, as points of a curve."""
    found: list[TestSet] = []
    items, low = _test_shots(task) + task.test_queries, 0
    for high in evaluation.get("lengths", ()):
        pools = []
        for pool in parts.test:
            tokens = store.lengths[store.offsets[pool.name] + pool.rows]
            within = pool.select(np.flatnonzero((low < tokens) & (tokens <= high)))
            try:
                pools.append(splits.drop_small_classes(within, items, _largest(task.ways)))
            except ValueError as error:
                raise ConfigError(
                    f"evaluate.lengths: too few sentences of {pool.name} have {low + 1} to {high} tokens. Give wider "
                    f"bands, or none. ({error})"
                ) from error
        sets = _episodic(store, parts._replace(validation=[], test=pools), split_by, task, evaluation).test
        found += [held._replace(setting="tokens", value=float(high)) for held in sets]
        low = high
    return found


def _of_parts(pools, store, parts, split_by, data, task, evaluation) -> Problem:
    if data.split == "supervised":
        return _supervised(store, pools, parts, evaluation, task)
    return _episodic(store, parts, split_by, task, evaluation)


@functools.lru_cache(maxsize=2)
def _split_album(settings: str, place: Callable):
    """The album, its store, its parts and what they are split by; shared by problems that differ in `train_on`."""
    given = ConfigDict(json.loads(settings))
    pools, store = _stored_album(json.dumps(_reading(given.data)), place)
    return pools, store, *_split(pools, given.data, given.task)


def _check_train_on(data, wanted: Sequence[str]) -> None:
    """Refuses data sets to train on that there are not, before the album is read."""
    if wanted and data.split not in ("within", "images"):
        raise ConfigError(
            f"data.train_on names data sets to train on, and data.split={data.split!r} chooses them by itself: use "
            "'images' or 'within', or leave data.train_on empty."
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

    if data.datasets:
        return list(data.datasets)
    return list(sum(EMBEDDED_DOMAINS.values(), ())) if data.album == "embedded" else list_datasets(data.album)


def _published(data, task, evaluation, place) -> Problem:
    """Episodes of a data set that comes with its own parts for training, validation and test."""
    parts, store = _stored_split(json.dumps(as_json(data)), place)
    split_by = {pool.name: "classes" for part in parts for pool in part}
    # Other splits have other test classes: what is measured on them must not be paired or averaged.
    suffix = f"_{data.split}_split" if data.get("split") else ""
    return _episodic(store, parts, split_by, task, evaluation, suffix)


def _episodic(store, parts, split_by, task, evaluation, suffix: str = "") -> Problem:
    """N-way K-shot episodes of the pools of each part; `suffix` is added to the names that are reported."""
    ways = _largest(task.ways)
    shape, dtype = store.item
    spec = TaskSpec("classify", shape, dtype, ways)

    def held(pool, seed, shots, queries):
        source = sampler.episodes(store, [pool], seed=seed, ways=ways, shots=shots, queries=queries)
        names = (pool.name + suffix, pool.domain, len(pool.classes), split_by[pool.name])
        return TestSet(*names, ways, shots, ways * queries, source)

    def train(seed, datasets=()):
        return sampler.episodes(
            store,
            [pool for pool in parts.train if not datasets or pool.name in datasets],
            seed=seed,
            ways=_span(task.ways),
            shots=_span(task.shots),
            queries=task.queries,
            weighting=task.weighting,
            label_noise=task.label_noise,
            random_slots=task.random_slots,
        )

    train(0)  # refuses what does not fit now, not after the first evaluation
    validation = [held(pool, evaluation.seed + 1, *_validation_size(task)) for pool in parts.validation]
    test = [held(pool, evaluation.seed, _test_shots(task), task.test_queries) for pool in parts.test]
    return Problem(spec, train, validation, test, parts.train)


# `get`: configs of committed results that are older than these keys are built again.
def _test_shots(task) -> int:
    return task.get("test_shots", 0) or _largest(task.shots)


def _validation_size(task) -> tuple[int, int]:
    """Shots and queries of a class in validation: those of the test, unless the task has its own."""
    shots, queries = task.get("validation_shots", 0), task.get("validation_queries", 0)
    return shots or _test_shots(task), queries or task.test_queries


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
    "functions": mixture_problem,
    "published": _published,
    "sinusoids": sinusoids_problem,
    "text": _text,
}


def _split(pools: list[Pool], data, task) -> tuple[splits.Split, dict[str, str]]:
    """The parts of the album, small classes and leaks dropped, and what each data set is split by."""
    if data.split == "domain":
        whole = splits.leave_domain_out(pools, data.held_out, data.validation or None)
        split_by = {pool.name: "domains" for pool in pools}
    elif data.split in ("within", "images", "supervised"):
        least = data.min_classes if data.split == "within" else sys.maxsize
        each = [splits.split_within(p, data.fractions, data.split_seed, least) for p in pools]
        whole = splits.Split(*([pool for part, _ in each for pool in part[i]] for i in range(3)))
        split_by = {pool.name: by for pool, (_, by) in zip(pools, each, strict=True)}
    else:
        raise ConfigError(f"data.split is {data.split!r}; use 'domain', 'within', 'images' or 'supervised'.")
    if data.split != "supervised":
        whole = _large_enough(whole, task)
    held = [*whole.validation, *whole.test]
    train, report = splits.drop_leaks(whole.train, held)
    lost = {name: counts for name, counts in report.items() if counts["same_bytes"] + counts["near_copies"]}
    if lost:
        counted = sum(c["same_bytes"] + c["near_copies"] for c in lost.values())
        print(f"Left {counted} training images out that validation or test hold too: {lost}", file=sys.stderr)
    if data.split != "supervised":  # leaks may have made classes small
        ways, items = _largest(task.ways), _largest(task.shots) + task.queries
        train = [splits.drop_small_classes(pool, items, ways) for pool in train]
    return splits.Split(train, whole.validation, whole.test), split_by


def _large_enough(split: splits.Split, task) -> splits.Split:
    ways = _largest(task.ways)
    # Each part as many as its own episodes take: learners that train with other shots are tested on the same classes.
    needed = (
        _largest(task.shots) + task.queries,
        sum(_validation_size(task)),
        _test_shots(task) + task.test_queries,
    )
    return splits.Split(
        *(
            [splits.drop_small_classes(pool, items, ways) for pool in part]
            for part, items in zip(split, needed, strict=True)
        )
    )


def _reading(data) -> dict:
    """The part of `data` that decides what is read; folds differ in the rest only."""
    names = ("album", "cache", "image_size", "backbone", "weights", "datasets", "skip_bad")
    return {name: as_json(data[name]) for name in names} | {"embedded": as_json(data.embedded)}


@functools.lru_cache(maxsize=2)
def _stored_album(reading: str, place: Callable) -> tuple[list[Pool], sampler.Store]:
    """Reads an album, embeds it if a backbone is asked for, and puts it on the devices, once per process."""
    pools = album_pools(ConfigDict(json.loads(reading)))
    return pools, sampler.make_store(pools, place)


def album_pools(data: ConfigDict) -> list[Pool]:
    """The data sets of an album, as `data` of a config says: images, or the features of a frozen backbone."""
    params = _backbone(data)  # what is wrong with it is said before an album is read or drawn
    pools = _embedded_pools(data) if data.album == "embedded" else _read_pools(data)
    return pools if data.backbone == "none" else _features(pools, data, params)


def _backbone(data) -> Any:
    """The parameters of the frozen backbone, or None; refuses weights that do not fit, and images too small for it."""
    from metaicl.models.squeezenet import load_squeezenet, squeezenet

    if data.backbone == "none":
        return None
    if data.backbone != "squeezenet":
        raise ConfigError(f"data.backbone is {data.backbone!r}; there are 'none' and 'squeezenet'.")
    if not data.weights:
        raise ConfigError(
            "The backbone 'squeezenet' needs its pretrained weights: give weights=PATH.safetensors."
        )
    params = load_squeezenet(data.weights)
    one_image = jax.ShapeDtypeStruct((1, data.image_size, data.image_size, 3), np.uint8)
    jax.eval_shape(squeezenet().apply, params, one_image)
    return params


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
    from metaicl.data.meta_album import read_album

    with ProgressBar("images") as bar:
        pools = read_album(
            data.album,
            image_size=data.image_size,
            skip_bad=data.skip_bad,
            datasets=data.datasets or None,
            progress=lambda name, done, total: bar(f"checking {name}", done, total),
        )
        if data.backbone != "none":
            return pools
        return [decode_pool(p, lambda name, done, total: bar(f"decoding {name}", done, total)) for p in pools]


def _features(pools: list[Pool], data, params) -> list[Pool]:
    from metaicl.features.cache import embed_pools
    from metaicl.models.squeezenet import squeezenet

    with ProgressBar("features") as bar:
        return embed_pools(
            pools,
            squeezenet(),
            params,
            cache_dir=cache_folder(data.cache) / "features",
            backbone_name="squeezenet",
            progress=lambda name, done, total: bar(f"embedding {name}", done, total),
        )


def _largest(span: Any) -> int:
    return int(span if isinstance(span, int) else span[1])


def _span(value: Any) -> Any:
    return value if isinstance(value, int) else tuple(value)
