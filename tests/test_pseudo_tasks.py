# SPDX-License-Identifier: Apache-2.0
"""Pseudo-tasks: what they are made of, that labels have no part in it, and training on them."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ALBUM, ROOT, TRAIN, cache, load_config, mesh, no_album  # noqa: F401

from metaicl import sharding
from metaicl.configuration import ConfigError, overridden
from metaicl.data import sampler
from metaicl.data.augmentation import strong
from metaicl.data.pool import Pool
from metaicl.data.pseudo_tasks import pseudo_tasks
from metaicl.episode import host_batch, replicate
from metaicl.experiment import chosen_runs, execute, make_run, problems
from metaicl.experiment.problems import make_problem

WAYS, SHOTS, QUERIES, SIDE, IMAGES = 3, 2, 4, 8, 24
SIZES = dict(ways=WAYS, shots=SHOTS, queries=QUERIES)
N = WAYS * SHOTS, WAYS * QUERIES


def pool(name: str, level: int, n: int = IMAGES) -> Pool:
    """Flat images of grey levels from `level` on, 4 apart, so that each tells which it is; four classes."""
    x = np.broadcast_to((level + 4 * np.arange(n, dtype=np.uint8)).reshape(n, 1, 1, 1), (n, SIDE, SIDE, 3))
    labels = np.sort(np.arange(n, dtype=np.int32) % 4)
    return Pool(name, "any", tuple("abcd"), labels, np.ascontiguousarray(x), np.full(n, b"0", "S64"))


POOLS = [pool("dark", 1), pool("bright", 130)]
STORE = sampler.make_store(POOLS)


def source_of(**given):
    return pseudo_tasks(**(dict(store=STORE, pools=POOLS, seed=3) | SIZES | given))


def drawn(source, numbers=range(4)):
    """The host's part of some episodes, and the episodes and what is known of them."""
    batch = host_batch(source, numbers)
    return batch, *jax.jit(source.build)(source.consts, batch, jax.random.key(9))


def test_shapes_labels_and_types():
    _, episode, info = drawn(source_of())
    for part, n in zip((episode.support, episode.query), N, strict=True):
        assert part.x.shape == (4, n, SIDE, SIDE, 3) and part.x.dtype == np.uint8
        assert part.y.dtype == np.int32 and part.mask.shape == part.y.shape and part.mask.all()
        counts = np.stack([np.bincount(y, minlength=WAYS) for y in np.asarray(part.y)])
        assert (counts == n // WAYS).all()
        assert any((np.diff(y) < 0).any() for y in np.asarray(part.y))  # in a random order
    assert info["weight"].shape == (4,) and len(set(np.asarray(info["weight"]).tolist())) == 4


def made_by_hand(source, i: int) -> dict:
    """Episode i of flat images, its augmentations one by one and its mixture in NumPy."""
    host = source.indices(i)
    key = jax.random.fold_in(jax.random.key(3), i)
    view_key, mixing_key, order_key = jax.random.split(key, 3)
    keys = jax.random.split(view_key, (WAYS, SHOTS + QUERIES))
    x = np.asarray(STORE.consts["x"], np.float32)
    augment = jax.jit(strong)
    views = np.stack(
        [[augment(x[row], k) for k in own] for row, own in zip(host["bases"], keys, strict=True)]
    )
    weight = float(jax.random.uniform(mixing_key, (), minval=0.01, maxval=0.499))
    made = {}
    for number, (part, span) in enumerate((("support", slice(SHOTS)), ("query", slice(SHOTS, None)))):
        images = views[:, span].reshape(-1, SIDE, SIDE, 3)
        slots = np.repeat(np.arange(WAYS), len(images) // WAYS)
        order = np.asarray(jax.random.permutation(jax.random.fold_in(order_key, number), len(images)))
        made[part] = images[order], slots[order]
    others = x[host["others"]]
    mixed = weight * others + (1 - weight) * made["query"][0]
    return made | {"query": (mixed, made["query"][1])}


def test_an_episode_is_what_the_publication_says():
    """Supports are views of their image; a query is another view with a further image in it, weight by weight."""
    source = source_of()
    _, episode, _ = drawn(source)
    for i in (0, 3):
        made = made_by_hand(source, i)
        for part in ("support", "query"):
            found = jax.tree.map(lambda a, i=i: np.asarray(a[i]), getattr(episode, part))
            images, slots = made[part]
            np.testing.assert_array_equal(found.y, slots)
            np.testing.assert_allclose(found.x.astype(np.float32), images, atol=0.51)  # rounded


def test_weights_are_uniform_between_their_bounds():
    source = source_of()
    weights = np.ravel([drawn(source, range(i, i + 4))[2]["weight"] for i in range(0, 300, 4)])
    assert 0.01 <= weights.min() < 0.03 and 0.48 < weights.max() <= 0.499
    assert abs(weights.mean() - 0.2545) < 3 * 0.141 / 300**0.5
    assert (np.asarray(drawn(source_of(mixing=(0.3, 0.3)))[2]["weight"]) == np.float32(0.3)).all()


def test_images_are_drawn_uniformly_and_none_twice():
    source = source_of()
    counts = np.zeros(2 * IMAGES)
    for i in range(600):
        host = source.indices(i)
        rows = np.concatenate([host["bases"], host["others"]])
        assert len(host["others"]) == N[1] and len(set(rows.tolist())) == len(rows)
        assert (rows // IMAGES == host["dataset"]).all()  # all of one data set
        counts[rows] += 1
    expected = 600 / 2 * (WAYS + N[1]) / IMAGES
    assert np.abs(counts / expected - 1).max() < 0.3


def test_camelu_draws_from_all_images():
    source = source_of(draw_from="pool")
    shares = []
    for i in range(200):
        host = source.indices(i)
        rows = np.concatenate([host["bases"], host["others"]])
        assert host["dataset"] == -1 and len(set(rows.tolist())) == len(rows)
        shares.append(np.mean(rows < IMAGES))
    assert abs(np.mean(shares) - 0.5) < 0.03 and np.std(shares) < 0.2  # 0.5 where each were of one data set


def test_data_sets_are_drawn_by_their_images():
    pools = [pool("dark", 1), pool("bright", 100, 36)]
    store = sampler.make_store(pools)
    count = lambda **given: np.mean(
        [source_of(store=store, pools=pools, **given).indices(i)["dataset"] for i in range(400)]
    )
    assert abs(count() - 0.5) < 0.08 and abs(count(weighting="images") - 0.6) < 0.08


def test_labels_have_no_part(rng):
    renamed = [
        dataclasses.replace(
            p, labels=np.sort(rng.integers(0, 2, len(p))).astype(np.int32), classes=("x", "y")
        )
        for p in POOLS
    ]
    for draw_from in ("data_set", "pool"):
        one, other = (drawn(source_of(pools=pools, draw_from=draw_from)) for pools in (POOLS, renamed))
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_an_episode_depends_on_its_seed_and_number_alone():
    source = source_of()
    whole = drawn(source, range(4))[1]
    alone = drawn(source_of(), [2, 7, 8, 9])[1]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2], b[0]), whole, alone)
    other = drawn(source_of(seed=4), [2, 7, 8, 9])[1]
    assert not np.array_equal(alone.query.x[0], other.query.x[0])
    assert not np.array_equal(whole.query.x[0], whole.query.x[1])


@pytest.mark.slow
def test_replicas_get_their_own_episodes():
    alone = [source_of(seed=seed) for seed in (3, 4)]
    both = replicate(alone)
    batch = host_batch(both, range(2))
    build = jax.vmap(both.build, in_axes=(both.const_axes, 1, None))
    found, _ = jax.jit(build)(both.consts, batch, jax.random.key(0))
    assert len(both.consts["x"]) == 2 * IMAGES  # shared
    for r, source in enumerate(alone):
        expected = drawn(source, range(2))[1]
        # Rounded images may differ by one level where a float is halfway between two.
        close = functools.partial(np.testing.assert_allclose, atol=1)
        jax.tree.map(lambda a, b: close(np.asarray(a[r], float), np.asarray(b, float)), found, expected)


@pytest.mark.slow
def test_episodes_spread_over_devices_are_the_same(devices):
    source = source_of()
    expected = drawn(source, range(4))[1]
    mesh = sharding.make_mesh(devices[:2])
    consts, batch = (
        sharding.put_replicated(mesh, source.consts),
        sharding.put_batch(mesh, host_batch(source, range(4))),
    )
    found, _ = jax.jit(source.build)(consts, batch, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_strong_mode_mixes_nothing_and_keeps_the_original():
    source = source_of(mode="strong")
    batch, episode, info = drawn(source)
    assert "weight" not in info and batch["others"].shape == (4, 0)
    x = np.asarray(STORE.consts["x"])
    for i in range(4):
        for slot, row in enumerate(batch["bases"][i]):
            own = np.asarray(episode.support.x[i])[np.asarray(episode.support.y[i]) == slot]
            assert (own == x[row]).all(axis=(1, 2, 3)).any()


def affine(params, images):
    """Stands for a backbone: normalises pixels and keeps some of them."""
    assert images.dtype == jnp.float32 and images.ndim == 4
    return ((images - params["mean"]) / params["std"]).reshape(len(images), -1)[:, ::7]


def test_a_backbone_embeds_what_is_mixed_and_normalising_commutes():
    """Features of mixed pixels are mixed features of normalised pixels, for a normalisation."""
    params = {"mean": jnp.float32(120.0), "std": jnp.float32(60.0)}
    source = source_of(encode=affine, params=params)
    _, episode, _ = drawn(source)
    made = made_by_hand(source, 1)
    for part in ("support", "query"):
        found = getattr(episode, part)
        assert found.x.dtype == np.float32 and found.x.ndim == 3
        expected = affine(params, jnp.asarray(made[part][0], jnp.float32))
        np.testing.assert_allclose(found.x[1], expected, atol=1e-3)
    assert source_of(encode=affine, params=params).build is source.build  # one program


REFUSED = [
    (dict(mixing=(0.1, 1.0)), "mixing is"),
    (dict(mixing=(-0.1, 0.4)), "mixing is"),
    (dict(mixing=(0.4, 0.1)), "mixing is"),
    (dict(ways=5), "'dark' has 24 images to train on, fewer than the 25 of a pseudo-task"),
    (dict(ways=10, draw_from="pool"), "All of them together has 48 images"),
    (dict(shots=0), "at least 1"),
    (dict(weighting="classes"), "weighting of pseudo-tasks is 'classes'"),
    (dict(mode="weak"), "mode of pseudo-tasks is 'weak'"),
    (dict(draw_from="album"), "draw_from of pseudo-tasks is 'album'"),
]


@pytest.mark.parametrize("given, words", REFUSED)
def test_what_does_not_fit_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        source_of(**given)


def test_features_are_no_images():
    features = dataclasses.replace(POOLS[0], x=np.zeros((IMAGES, 5), np.float32))
    with pytest.raises(ValueError, match=r"uint8 RGB images .* float32 \(5,\)"):
        source_of(store=sampler.make_store([features]), pools=[features])


TINY = {
    **ALBUM,
    **TRAIN,
    "task.ways": 3,
    "task.shots": 2,
    "task.queries": 2,
    "task.test_queries": 3,
    "train.batch": 2,
} | {
    f"learners.{name}.{key}": value
    for name in ("supervised", "geom_u", "camelu", "strong")
    for key, value in {
        "image_width": 16,
        "layers": 1,
        "heads": 2,
        "mlp": 16,
        "encoder_settings.filters": (4, 4),
        "train.steps": 4,
        "train.warmup": 1,
    }.items()
}


def tiny(argument: str, cache, overrides=None):  # noqa: F811
    """`configs/unsupervised.py` in a size for tests."""
    config = load_config(
        ROOT / "configs" / "unsupervised.py", f"backbone=none,held_out=cells,{argument},cache={cache}"
    )
    return overridden(config, TINY | (overrides or {}))


@pytest.mark.slow
def test_training_without_labels_end_to_end(cache, tmp_path):  # noqa: F811
    """Trains on pseudo-tasks and is tested on the labelled episodes that the supervised learner is tested on."""
    runs = chosen_runs(tiny("tasks=geom_u+supervised", cache), None)
    made = {}
    for name in ("held_out=cells,tasks=geom_u", "held_out=cells,tasks=supervised"):
        run = make_run(name, runs[name], tmp_path / name, mesh())
        made[name.partition("tasks=")[2]] = run.replicas[0].problem
        if name.endswith("geom_u"):
            execute(run)
    text = (tmp_path / "held_out=cells,tasks=geom_u" / "records.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {(line["learner"], line["domain"]) for line in lines} == {("geom_u", "cells")}
    assert all(len(line["values"]["accuracy"]) == 6 for line in lines)
    one, other = made["geom_u"], made["supervised"]
    assert one.spec == other.spec and [h.dataset for h in one.test] == [h.dataset for h in other.test]
    jax.tree.map(
        np.testing.assert_array_equal, one.test[0].source.indices(5), other.test[0].source.indices(5)
    )
    trained = one.train(0)
    assert "bases" in trained.indices(0) and "support_y" in other.train(0).indices(0)
    held = {h.dataset for h in (*one.test, *one.validation)}
    assert held == {"tissues", "gears"} and {p.name for p in one.pools} == {"flowers"}


def test_training_does_not_look_at_labels(cache, monkeypatch):  # noqa: F811
    """Classes of one image, which labelled episodes could not have, change nothing."""
    config = tiny("tasks=geom_u", cache, {"task.pseudo.draw_from": "data_set", "data.held_out": "cells"})
    read = problems._embedded_pools

    def singles(data):
        return [
            dataclasses.replace(
                p, labels=np.arange(len(p), dtype=np.int32), classes=tuple(map(str, range(len(p))))
            )
            if p.name == "flowers"
            else p
            for p in read(data)
        ]

    place = lambda tree: tree
    before = make_problem(config, place).train(0)
    monkeypatch.setattr(problems, "_embedded_pools", singles)
    renamed = overridden(config, {"data.embedded.seed": 0})
    fresh = lambda tree: tree  # another place: nothing that is kept is used again
    after = make_problem(renamed, fresh).train(0)
    jax.tree.map(np.testing.assert_array_equal, before.indices(1), after.indices(1))
    labelled = overridden(config, {"task.pseudo.draw_from": ""})
    with pytest.raises(ValueError, match="flowers has 0 classes of at least 4"):
        make_problem(labelled, fresh)


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"task.ways": (2, 3)}, "one number of each"),
        ({"task.label_noise": 0.1}, "no labels to be wrong"),
        ({"data.split": "supervised"}, "data.split='supervised'"),
        ({"data.kind": "published"}, "data.kind is 'published'"),
        ({"data.merge": True}, "of the classes of training"),
        ({"data.keep": {"classes": 0.5, "items_of_class": 0}}, "of the classes of training"),
    ],
)
def test_configs_that_do_not_fit_are_refused_before_an_album_is_read(overrides, words, cache, no_album):  # noqa: F811
    config = tiny("tasks=geom_u", cache)
    config = overridden(config, {"task.pseudo.draw_from": "pool"})
    with config.unlocked(), config.ignore_type():
        for key, value in overrides.items():
            part, _, name = key.partition(".")
            config[part][name] = value
    with pytest.raises(ConfigError, match=words):
        make_problem(config, lambda tree: tree)


def test_too_few_images_name_the_setting(cache):  # noqa: F811
    config = tiny(
        "tasks=geom_u",
        cache,
        {"task.pseudo.draw_from": "data_set", "task.queries": 10, "data.held_out": "cells"},
    )
    with pytest.raises(ConfigError, match=r"task\.pseudo: Data set 'flowers' has 30 images"):
        make_problem(config, lambda tree: tree)


@pytest.mark.parametrize(
    "argument, words", [("tasks=geom", "tasks='geom' is not one of"), ("learner=x", "not one of")]
)
def test_the_config_refuses_unknown_names(argument, words):
    with pytest.raises(ConfigError, match=words):
        load_config(ROOT / "configs" / "unsupervised.py", argument)
