# SPDX-License-Identifier: Apache-2.0
"""Episodes: pure functions of (seed, number), fair, disjoint, padded right, and never of a held-out domain."""

from __future__ import annotations

import hashlib
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import cache, tiny_config  # noqa: F401 (a fixture)

from metaicl import sharding
from metaicl.data import sampler, splits
from metaicl.data.functions import prompts
from metaicl.data.pipeline import open_batches
from metaicl.data.pool import Pool
from metaicl.episode import Examples, Source, limit_shots, replicate
from metaicl.experiment import make_problem


def pool_of(name: str, counts: list[int], domain: str = "d", seed: int = 0) -> Pool:
    """Random vectors whose first number tells the class."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    rng = np.random.default_rng([seed, *name.encode()])
    x = np.concatenate([labels[:, None], rng.normal(size=(len(labels), 3))], 1).astype(np.float32)
    digests = np.array([hashlib.sha256(row.tobytes() + name.encode()).hexdigest() for row in x], "S64")
    return Pool(name, domain, tuple(f"{name} {c}" for c in range(len(counts))), labels, x, digests)


POOLS = [pool_of("a", [9, 8, 7, 9, 8, 6]), pool_of("b", [6] * 4), pool_of("c", [40] * 10)]
STORE = sampler.make_store(POOLS)


def source_of(seed: int = 0, pools=POOLS, store=STORE, **settings) -> Source:
    return sampler.episodes(store, pools, **(dict(seed=seed, ways=3, shots=2, queries=2) | settings))


def real(one: dict, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels of the real items of a part."""
    keep = one[f"{part}_mask"] > 0
    return one[f"{part}_rows"][keep], one[f"{part}_y"][keep]


def equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert np.asarray(a[name]).dtype == np.asarray(b[name]).dtype


# Which episode is which


def test_an_episode_depends_on_seed_and_number_alone():
    source = source_of()
    forward = [source.indices(i) for i in range(20)]
    for i in reversed(range(20)):
        equal(source_of().indices(i), forward[i])
        equal(source.indices(i), forward[i])
    texts = {str(one) for one in forward} | {str(source_of(1).indices(i)) for i in range(20)}
    assert len(texts) == 40


def test_the_items_behind_an_episode_do_not_change_with_other_data_sets_in_the_store():
    alone = sampler.make_store(POOLS[1:2])
    for i in range(5):
        few = source_of(pools=POOLS[1:2], store=alone)
        many = source_of(pools=POOLS[1:2])
        one, other = few.indices(i), many.indices(i)
        for part in ("support", "query"):
            keep = one[f"{part}_mask"] > 0
            np.testing.assert_array_equal(
                few.consts["x"][one[f"{part}_rows"]][keep], many.consts["x"][other[f"{part}_rows"]][keep]
            )


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_batches_hold_the_episodes_in_order_whatever_the_threads(threads):
    source = source_of()
    batches = open_batches(source, 3, threads=threads)
    for t in range(5):
        batch = next(batches)
        for b in range(3):
            equal({name: column[b] for name, column in batch.items()}, source.indices(3 * t + b))


def test_the_position_of_the_batches_can_be_stored():
    source, batches = source_of(), open_batches(source_of(), 4)
    for _ in range(3):
        next(batches)
    position = batches.get_state()
    expected = [next(batches) for _ in range(3)]
    again = open_batches(source, 4, threads=0)
    again.set_state(position)
    for batch in expected:
        equal(next(again), batch)
    batches.set_state(position)
    equal(next(batches), expected[0])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_batches_of_several_processes_join_to_that_of_one(processes):
    whole = open_batches(source_of(), 8, threads=0)
    parts = [open_batches(source_of(), 8, process=p, processes=processes) for p in range(processes)]
    for _ in range(3):
        pieces = [next(part) for part in parts]
        equal({name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}, next(whole))


def test_a_batch_that_the_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="8 episodes cannot be shared by 3 processes"):
        open_batches(source_of(), 8, processes=3)


# What an episode holds


def test_support_and_query_are_disjoint_and_labelled_by_slot():
    source = source_of()
    for i in range(200):
        one = source.indices(i)
        pool = POOLS[one["dataset"]]
        rows, y = real(one, "support")
        query_rows, query_y = real(one, "query")
        assert len({*rows, *query_rows}) == 3 * (2 + 2)  # no item twice
        assert Counter(y) == Counter(query_y) == {0: 2, 1: 2, 2: 2}
        assert len(set(one["classes"])) == 3
        inside = np.concatenate([rows, query_rows]) - STORE.offsets[pool.name]
        assert inside.min() >= 0 and inside.max() < len(pool)
        np.testing.assert_array_equal(pool.labels[inside], one["classes"][np.concatenate([y, query_y])])


def test_the_order_of_the_support_set_does_not_tell_the_classes():
    """A learner that answered by position would be found out."""
    firsts = Counter(int(real(source_of().indices(i), "support")[1][0]) for i in range(600))
    assert all(abs(firsts[slot] - 200) < 4 * (600 * 2 / 9) ** 0.5 for slot in range(3))


def test_slots_are_random_or_keep_the_order_of_the_classes():
    kept, mixed = source_of(random_slots=False), source_of()
    assert all(np.all(np.diff(kept.indices(i)["classes"]) > 0) for i in range(100))
    rising = sum(np.all(np.diff(mixed.indices(i)["classes"]) > 0) for i in range(600))
    assert abs(rising - 100) < 4 * (600 * 5 / 36) ** 0.5


def test_every_class_and_item_is_drawn_equally_often():
    source = source_of(pools=POOLS[1:2])
    classes, items = Counter(), Counter()
    for i in range(1000):
        one = source.indices(i)
        classes.update(one["classes"].tolist())
        items.update(real(one, "support")[0].tolist())
    assert chi_square(classes, [1] * 4) < 16.3  # 3 degrees of freedom, p = 0.001
    assert chi_square(items, [1] * 24, STORE.offsets["b"]) < 49.7  # 23 degrees of freedom


def chi_square(counts: Counter, weights: list[float], first: int = 0) -> float:
    total = sum(counts.values())
    assert set(counts) <= set(range(first, first + len(weights)))
    expected = total * np.asarray(weights, float) / np.sum(weights)
    seen = np.array([counts[first + k] for k in range(len(weights))])
    return float(np.sum((seen - expected) ** 2 / expected))


@pytest.mark.parametrize(
    ("weighting", "weights"), [("uniform", [1, 1, 1]), ("images", [47, 24, 400]), ("classes", [6, 4, 10])]
)
def test_data_sets_are_drawn_with_their_weights(weighting, weights):
    source = source_of(weighting=weighting)
    counts = Counter(int(source.indices(i)["dataset"]) for i in range(3000))
    assert chi_square(counts, weights) < 13.8  # 2 degrees of freedom, p = 0.001
    others = {"uniform": [47, 24, 400], "images": [6, 4, 10], "classes": [1, 1, 1]}[weighting]
    assert chi_square(counts, others) > 100


def test_ranges_of_ways_and_shots_are_padded_and_masked():
    source = source_of(ways=(2, 4), shots=(0, 3), queries=2)
    seen = Counter()
    for i in range(600):
        one = source.indices(i)
        assert [len(one[f"{part}_rows"]) for part in ("support", "query")] == [12, 8]
        (rows, y), (_, query_y) = real(one, "support"), real(one, "query")
        n = len(set(query_y))
        k = len(rows) // n
        seen[n, k] += 1
        assert Counter(y) == Counter(dict.fromkeys(range(n), k) if k else {})
        assert Counter(query_y) == Counter(dict.fromkeys(range(n), 2))
        assert (one["classes"][:n] >= 0).all() and (one["classes"][n:] == -1).all()
        for part in ("support", "query"):
            mask = one[f"{part}_mask"]
            assert mask.dtype == np.float32 and np.all(np.diff(mask) <= 0)  # padding is behind
    assert set(seen) == {(n, k) for n in (2, 3, 4) for k in (0, 1, 2, 3)}
    joint = Counter({4 * (n - 2) + k: count for (n, k), count in seen.items()})
    assert chi_square(joint, [1] * 12) < 31.3  # 11 degrees of freedom, p = 0.001


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_label_noise_gives_its_share_another_label_of_the_episode(noise):
    source = source_of(label_noise=noise, ways=4)
    wrong, total, taken = 0, 0, Counter()
    for i in range(300):
        one = source.indices(i)
        pool = POOLS[one["dataset"]]
        for part in ("support", "query"):
            rows, y = real(one, part)
            assert set(y) <= {0, 1, 2, 3}
            slot_of = {c: slot for slot, c in enumerate(one["classes"])}
            truth = np.array([slot_of[c] for c in pool.labels[rows - STORE.offsets[pool.name]]])
            if part == "query":
                np.testing.assert_array_equal(y, truth)
            else:
                wrong += np.sum(y != truth)
                total += len(y)
                taken.update(((y - truth) % 4)[y != truth].tolist())
    assert abs(wrong / total - noise) <= 4 * (noise * (1 - noise) / total) ** 0.5
    if noise:
        assert chi_square(taken, [1] * 3, first=1) < 13.8  # every wrong label is as likely


def test_label_noise_leaves_the_items_of_the_episode_alone():
    clean, noisy = source_of(), source_of(label_noise=0.5)
    for i in range(20):
        np.testing.assert_array_equal(
            np.sort(clean.indices(i)["support_rows"]), np.sort(noisy.indices(i)["support_rows"])
        )


def test_gather_makes_an_episode_of_rows():
    source = source_of()
    batch = next(open_batches(source, 4, threads=0))
    made, info = jax.jit(source.build)(source.consts, batch, jax.random.key(0))
    assert made.support.x.shape == (4, 6, 4) and made.query.mask.shape == (4, 6)
    np.testing.assert_array_equal(made.support.x, STORE.consts["x"][batch["support_rows"]])
    np.testing.assert_array_equal(made.query.y, batch["query_y"])
    assert info.keys() == {"dataset", "classes"}
    # The first number of an item is its class.
    classes = np.take_along_axis(batch["classes"], batch["support_y"], 1)
    np.testing.assert_array_equal(made.support.x[..., 0], classes)


# What is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(ways=5), ["'b' has 4 classes", "5 ways", "ask for fewer ways"]),
        (dict(ways=(2, 7)), ["'a' has 6 classes", "7 ways"]),
        (
            dict(shots=5),
            ["Class 'a 5' of data set 'a' has 6 items", "fewer than 7", "drop small classes first"],
        ),
        (dict(ways=0), ["ways is 0"]),
        (dict(shots=(3, 1)), ["shots is (3, 1)", "rising pair"]),
        (dict(shots=-1), ["shots is -1"]),
        (dict(weighting="size"), ["weighting is 'size'", "'uniform', 'images' or 'classes'"]),
        (dict(label_noise=1.5), ["label_noise is 1.5", "between 0 and 1"]),
    ],
)
def test_what_does_not_fit_is_named(settings, words):
    with pytest.raises(ValueError) as error:
        source_of(**settings)
    assert all(word in str(error.value) for word in words), str(error.value)


# Supervised batches


def test_labelled_items_are_uniform_and_numbered_over_all_data_sets():
    firsts = {"a": 0, "b": 6, "c": 10}
    source = sampler.labelled_items(STORE, POOLS[:2], firsts, seed=0, items=50)
    counts, labels = Counter(), np.concatenate([POOLS[0].labels, 6 + POOLS[1].labels])
    for i in range(60):
        one = source.indices(i)
        assert len(one["support_rows"]) == len(one["support_mask"]) == 0
        assert one["query_mask"].tolist() == [1.0] * 50
        np.testing.assert_array_equal(one["query_y"], labels[one["query_rows"]])
        counts.update(one["query_rows"].tolist())
        equal(one, sampler.labelled_items(STORE, POOLS[:2], firsts, seed=0, items=50).indices(i))
    assert chi_square(counts, [1] * 71) < 112.4  # 70 degrees of freedom, p = 0.001
    made, _ = source.build(source.consts, next(open_batches(source, 2, threads=0)), jax.random.key(0))
    assert made.support.x.shape == (2, 0, 4) and made.query.x.shape == (2, 50, 4)


# Held-out domains


def test_no_item_of_a_held_out_domain_is_ever_trained_on():
    shared = pool_of("copies", [8] * 4, domain="x")
    pools = [pool_of(f"{domain}{n}", [8] * 5, domain) for domain in "xyzw" for n in range(2)]
    # The data set `copies` of another domain holds images of the test domain.
    stolen = pools[0].select(np.flatnonzero(pools[0].labels < 2))
    x, digests = shared.x.copy(), shared.digests.copy()
    x[:4], digests[:4] = stolen.x[:4], stolen.digests[:4]
    pools.append(Pool("copies", "y", shared.classes, shared.labels, x, digests))
    store = sampler.make_store(pools)
    digest_of = np.concatenate([pool.digests for pool in pools])
    for held_out in "xyzw":
        split = splits.leave_domain_out(pools, held_out)
        held = [*split.validation, *split.test]
        train, _ = splits.drop_leaks(split.train, held)
        train = [p for p in train if np.sum(p.counts >= 4) == len(p.classes)]
        source = source_of(pools=train, store=store)
        forbidden = set(np.concatenate([pool.digests for pool in held]).tolist())
        drawn = {pool.name: set() for pool in split.test}
        for i in range(300):
            one = source.indices(i)
            rows = np.concatenate([real(one, "support")[0], real(one, "query")[0]])
            assert not forbidden & set(digest_of[rows].tolist())
        for pool in split.test:
            test = source_of(pools=[pool], store=store)
            for i in range(50):
                drawn[pool.name] |= set(digest_of[real(test.indices(i), "query")[0]].tolist())
            assert drawn[pool.name] <= set(pool.digests.tolist()) and len(drawn[pool.name]) == len(pool)


@pytest.mark.parametrize("held_out", ["cells", "plants", "machines"])
def test_the_problem_of_a_config_keeps_the_domains_apart(held_out, cache):  # noqa: F811
    config = tiny_config(f"held_out={held_out},learner=prototypes", cache, {"data.held_out": held_out})
    problem = make_problem(config, lambda tree: sharding.put_replicated(sharding.make_mesh(), tree))
    x = np.asarray(problem.train(0).consts["x"])
    digest_of = [hashlib.sha256(image.tobytes()).hexdigest() for image in x]
    digests = lambda one: {digest_of[r] for part in ("support", "query") for r in real(one, part)[0]}
    assert {held.domain for held in problem.test} == {held_out}
    assert held_out not in {held.domain for held in problem.validation}
    held = {
        digest
        for each in (*problem.test, *problem.validation)
        for i in range(40)
        for digest in digests(each.source.indices(i))
    }
    assert len(held) == 2 * 5 * 6  # every image of both domains turns up
    trained = set().union(*(digests(problem.train(0).indices(i)) for i in range(200)))
    assert len(trained) == 5 * 6 and not trained & held


# Shot curves and replicas


def test_limited_shots_are_the_first_real_ones_of_every_class():
    y = jnp.array([0, 1, 0, 2, 1, 0, 0, 2])
    mask = jnp.array([1, 1, 0, 1, 1, 1, 1, 1.0])
    support = Examples(jnp.zeros((8, 2)), y, mask)
    limited = jax.jit(limit_shots)
    assert limited(support, 0).mask.tolist() == [0] * 8
    assert limited(support, 1).mask.tolist() == [1, 1, 0, 1, 0, 0, 0, 0]
    assert limited(support, 2).mask.tolist() == [1, 1, 0, 1, 1, 1, 0, 1]
    assert limited(support, 2**30).mask.tolist() == mask.tolist()
    assert limited._cache_size() == 1
    points = Examples(jnp.zeros((4, 2)), jnp.zeros((4, 1)), jnp.array([1, 0, 1, 1.0]))
    assert limit_shots(points, 2).mask.tolist() == [1, 0, 1, 0]


def noisy_functions(seed, dimensions):
    """Linear functions with a noise that grows with the seed."""
    classes = {"noisy": {"kind": "noisy_linear", "noise": 0.1 * seed}}
    return prompts(seed=seed, dimensions=dimensions, points=3, classes=classes, weights={"noisy": 1.0})


def test_replicas_share_what_is_one_object_and_stack_the_rest():
    sources = [source_of(seed) for seed in (1, 2)]
    both = replicate(sources)
    assert both.consts["x"] is STORE.consts["x"] and both.const_axes == {"x": None}
    one = both.indices(7)
    for r, source in enumerate(sources):
        equal({name: column[r] for name, column in one.items()}, source.indices(7))
    functions = replicate([noisy_functions(seed, dimensions=2) for seed in (1, 2)])
    assert set(jax.tree.leaves(functions.const_axes)) == {0}
    np.testing.assert_array_equal(functions.consts["seed"], [1, 2])
    np.testing.assert_allclose(functions.consts["classes"][0]["parts"][0]["noise"], [0.1, 0.2], rtol=1e-6)


def test_replicas_of_different_programs_are_refused():
    parts = [noisy_functions(1, dimensions=d) for d in (2, 3)]
    with pytest.raises(ValueError, match=r"Replicas must share one program.*as separate runs"):
        replicate(parts)
