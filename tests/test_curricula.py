# SPDX-License-Identifier: Apache-2.0
"""Orders over data sets are the walks that a person would take, and adaptive ones can be replayed."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from metaicl import curricula
from metaicl.curricula.adaptive import exp3_chances

NAMES = ["ants", "bees", "cats", "dogs", "eels"]
# Made by hand: from ants, the nearest walk is a-c-d-b-e, the farthest a-e-b-c-d.
DISTANCES = np.array(
    [
        # ants bees cats dogs eels
        [0.0, 5.0, 1.0, 4.0, 9.0],
        [5.0, 0.0, 6.0, 3.0, 8.0],
        [1.0, 6.0, 0.0, 2.0, 7.0],
        [4.0, 3.0, 2.0, 0.0, 7.5],
        [9.0, 8.0, 7.0, 7.5, 0.0],
    ]
)


def named(order) -> str:
    return "".join(NAMES[k][0] for k in order)


def random_distances(rng, count: int) -> np.ndarray:
    upper = np.triu(rng.random((count, count)), 1)
    return upper + upper.T


# Fixed orders


def test_domains_and_data_sets_come_in_alphabetical_order():
    domains = ["y", "x", "y", "x", "x"]
    assert named(curricula.domain_order(NAMES, domains)) == "bdeac"
    backwards = curricula.domain_order(NAMES[::-1], domains[::-1])
    assert [NAMES[::-1][k] for k in backwards] == ["bees", "dogs", "eels", "ants", "cats"]


def test_easy_to_hard_and_back_with_ties_by_name():
    accuracy = np.array([0.5, 0.9, 0.5, 0.7, 0.9])
    assert named(curricula.by_ease(NAMES, accuracy)) == "bedac"
    assert named(curricula.by_ease(NAMES, accuracy, hardest_first=True)) == "acdbe"
    with pytest.raises(
        ValueError, match=r"ease has shape \(4,\) and must hold a finite number for each of 5"
    ):
        curricula.by_ease(NAMES, accuracy[:4])
    with pytest.raises(ValueError, match="must hold a finite number"):
        curricula.by_ease(NAMES, np.where(accuracy > 0.8, np.nan, accuracy))


@pytest.mark.parametrize(
    ("directions", "start", "expected"),
    [
        (curricula.NEAREST, 0, "acdbe"),
        (curricula.NEAREST, 4, "ecadb"),
        (curricula.FARTHEST, 0, "aebcd"),
        (curricula.FARTHEST, 3, "deabc"),
        (curricula.SWITCH, 0, "acedb"),
        (curricula.SWITCH, 1, "bdeca"),
        (("farthest", "nearest"), 0, "aecbd"),
    ],
)
def test_greedy_walks_are_those_taken_by_hand(directions, start, expected):
    assert named(curricula.walk(NAMES, DISTANCES, start, directions)) == expected


def test_the_nearest_walk_breaks_ties_by_name_wherever_they_stand():
    equal = np.ones((5, 5)) - np.eye(5)
    for directions in (curricula.NEAREST, curricula.FARTHEST, curricula.SWITCH):
        assert named(curricula.walk(NAMES, equal, 2, directions)) == "cabde"
    moved = [3, 1, 4, 0, 2]
    names = [NAMES[k] for k in moved]
    assert [names[k] for k in curricula.walk(names, equal, 4)] == ["cats", "ants", "bees", "dogs", "eels"]


def test_what_is_no_distance_is_refused():
    def changed(i, j, value):
        result = DISTANCES.copy()
        result[i, j] = value
        return result

    with pytest.raises(ValueError, match=r"shape \(4, 4\); 5 data sets need \(5, 5\)"):
        curricula.walk(NAMES, DISTANCES[:4, :4], 0)
    with pytest.raises(ValueError, match="The distance of bees to dogs is nan and back 3: distances must be"):
        curricula.walk(NAMES, changed(1, 3, np.nan), 0)
    with pytest.raises(ValueError, match="The distance of bees to dogs is 1 and back 3"):
        curricula.shortest_path(NAMES, changed(1, 3, 1.0))
    with pytest.raises(ValueError, match="start is 5; it must be the position of one of 5"):
        curricula.walk(NAMES, DISTANCES, 5)


def test_an_order_that_is_no_permutation_is_refused():
    assert curricula.check_order(np.array([4, 0, 1, 3, 2]), NAMES) == [4, 0, 1, 3, 2]
    for order, said in (
        ([0, 1, 2, 3], "it lacks eels"),
        ([0, 1, 2, 3, 3], "it lacks eels; it repeats dogs"),
        ([0, 1, 2, 3, 7], "it lacks eels; it has no data set at 7"),
    ):
        with pytest.raises(ValueError, match=f"5 data sets is no permutation: {re.escape(said)}"):
            curricula.check_order(order, NAMES)


def test_random_orders_depend_on_the_seed_and_the_names_alone():
    order = [NAMES[k] for k in curricula.random_order(NAMES, 3)]
    assert order == [NAMES[::-1][k] for k in curricula.random_order(NAMES[::-1], 3)]
    assert len({tuple(curricula.random_order(NAMES, seed)) for seed in range(20)}) > 10


# Shortest paths


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("fixed", [False, True])
def test_the_exact_path_is_the_shortest_of_all(count, fixed, rng):
    names = [f"set {k}" for k in rng.permutation(count)]
    for _ in range(5):
        distances = random_distances(rng, count)
        start = int(rng.integers(count)) if fixed else None
        found = curricula.exact_path(names, distances, start)
        paths = [p for p in itertools.permutations(range(count)) if start is None or p[0] == start]
        shortest = min(curricula.path_length(p, distances) for p in paths)
        assert curricula.check_order(found, names) == found
        assert curricula.path_length(found, distances) == pytest.approx(shortest, abs=1e-12)
        assert found[0] == start if fixed else names[found[0]] <= names[found[-1]]


def test_two_opt_is_never_longer_than_what_it_begins_with(rng):
    names, better = [f"{k:02}" for k in range(16)], 0
    for seed in range(10):
        distances = random_distances(np.random.default_rng(seed), 16)
        start = seed % 16
        greedy = curricula.walk(names, distances, start)
        for free in (False, True):
            path = curricula.two_opt(greedy, distances, free_start=free)
            assert sorted(path) == list(range(16)) and (free or path[0] == start)
            shorter = curricula.path_length(greedy, distances) - curricula.path_length(path, distances)
            assert shorter >= 0
            better += shorter > 0
        whole = curricula.shortest_path(names, distances)
        assert curricula.path_length(whole, distances) <= curricula.path_length(greedy, distances)
    assert better > 10


def test_the_path_along_a_line_is_the_line():
    places = np.random.default_rng(0).permutation(15)
    distances = np.abs(places[:, None] - places[None, :])
    names = [f"at {p:02}" for p in places]
    found = [int(places[k]) for k in curricula.shortest_path(names, distances)]
    assert found in (list(range(15)), list(range(15))[::-1])
    few = curricula.shortest_path(names[:8], distances[:8, :8])
    assert [names[k] for k in few] == sorted(names[:8])


def test_two_opt_refuses_what_is_no_path():
    with pytest.raises(ValueError, match="no permutation: it lacks 4"):
        curricula.two_opt([0, 1, 2, 3], DISTANCES)


# Adaptive


def played(kind: str, rewards, stages: int, seed: int = 0, rate: float = 0.3) -> list[tuple[int, float]]:
    """A game against arms whose gains are `rewards` and noise that depends on the stage."""
    names, history = [f"arm {k}" for k in range(len(rewards))], []
    for t in range(stages):
        arm = curricula.choose(kind, history, names, seed=seed, rate=rate)
        noise = 0.02 * np.random.default_rng([9, t]).normal()
        history.append((arm, rewards[arm] + noise))
    return history


@pytest.mark.parametrize("kind", curricula.BANDITS)
def test_a_bandit_finds_the_arm_that_rewards(kind):
    history = played(kind, [0.0, 0.02, 0.2, -0.1], 200)
    counts = np.bincount([arm for arm, _ in history[100:]], minlength=4)
    assert counts.argmax() == 2 and counts[2] > 50


@pytest.mark.parametrize("kind", curricula.BANDITS)
def test_a_bandit_can_be_replayed_from_its_history(kind):
    history = played(kind, [0.1, 0.3, 0.0], 30)
    names = ["a", "b", "c"]
    for t in (0, 1, 7, 29):
        again = curricula.choose(kind, [list(pair) for pair in history[:t]], names, seed=0, rate=0.3)
        assert again == history[t][0]
    others = {tuple(arm for arm, _ in played(kind, [0.1, 0.3, 0.0], 30, seed=s)) for s in range(5)}
    assert len(others) > 1


def test_ucb_tries_every_arm_and_then_takes_the_largest_bound():
    history = played("ucb", [0.1, 0.3, 0.0], 3)
    assert sorted(arm for arm, _ in history) == [0, 1, 2]
    # Scaled gains 0.5, 1, 0; arm 1 has 1 + 0.1 sqrt(2 ln 3), the largest; after a poor second gain arm 0 leads.
    history = [(0, 0.5), (1, 1.0), (2, 0.0)]
    assert curricula.choose("ucb", history, NAMES[:3], rate=0.1) == 1
    assert curricula.choose("ucb", [*history, (1, -1.0)], NAMES[:3], rate=0.1) == 0


def test_chances_of_exp3_are_those_computed_by_hand():
    np.testing.assert_allclose(exp3_chances([], 4, 0.2), np.full(4, 0.25))
    # One gain stands in the middle of itself: 1/2, over its chance 1/2, so a weight of exp(0.2 * 1 / 2).
    (first, second) = exp3_chances([(1, 7.0)], 2, 0.2)
    weight = np.exp(0.1)
    assert second == pytest.approx(0.8 * weight / (1 + weight) + 0.1) and first + second == pytest.approx(1)
    # The second gain is the smallest: it adds nothing.
    np.testing.assert_allclose(exp3_chances([(1, 7.0), (0, 1.0)], 2, 0.2), [first, second])


def test_a_history_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="Unknown bandit 'greedy'; there are ucb, exp3"):
        curricula.choose("greedy", [], NAMES, rate=0.1)
    for gain in ((5, 0.0), (0, float("nan"))):
        with pytest.raises(ValueError, match="Stage 2 of the history"):
            curricula.choose("exp3", [(0, 0.1), gain], NAMES, rate=0.1)
    with pytest.raises(ValueError, match="rate is 0; for exp3"):
        curricula.choose("exp3", [], NAMES, rate=0)


# Budgets


def test_steps_are_shared_out_to_the_last():
    assert curricula.stage_steps("static", 10, [5, 100, 7]) == [4, 3, 3]
    assert curricula.stage_steps("proportional", 100, [10, 20, 70]) == [10, 20, 70]
    assert curricula.stage_steps("proportional", 10, [1, 1, 1000]) == [1, 1, 8]
    for total in (7, 50, 999):
        steps = curricula.stage_steps("proportional", total, [3, 14, 15, 92, 65, 35, 89])
        assert sum(steps) == total and min(steps) >= 1


def test_a_budget_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="2 steps are too few for 3 stages"):
        curricula.stage_steps("static", 2, [1, 1, 1])
    with pytest.raises(ValueError, match="Unknown budget 'equal'; there are static, proportional"):
        curricula.stage_steps("equal", 5, [1])
