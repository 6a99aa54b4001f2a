# SPDX-License-Identifier: Apache-2.0
"""Reptile moves the weights towards the solutions of all tasks (Nichol et al. 2018, section 5.2): how far they are.

Reptile is stochastic gradient descent on half the squared distance to the tasks' solution manifolds, as far as its
inner loop gets there. Measured on sine curves: how far the weights have to move until they fit ten points of a new
curve, while Reptile, MAML, first-order MAML and joint training learn, and for a network that learned nothing.

    python -m metaicl.main --config=configs/solution_manifolds.py          three seeds
    python -m metaicl.main --config=configs/solution_manifolds.py:quick    one seed, fewer steps

Family and settings are those of `sinusoid.py:reptile` (network 64-64 with tanh, phases in [0, 2 pi]). A task counts as
solved at a mean squared error of 0.01; the distance is an upper bound (`metaicl/analysis/probes.py`). Numbers of
steps, seeds and the tolerance are our choice.

Expected: training with an inner loop halves the distance or more, joint training does not get as near.
"""

import math

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import named, parse_argument, separate

LEARNERS = ("reptile", "maml", "fomaml", "joint")


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, {})
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        kind="sinusoids",
        name="reptile_family",
        amplitude=(0.1, 5.0),
        phase=(0.0, 2 * math.pi),
        interval=(-5.0, 5.0),
        grid=50,
    )
    config.task = dict(shots=10, queries=10, test_shots=10, test_queries=50)
    config.learners = separate(learners(arg))
    config.learner = "reptile"
    config.baselines = ("untrained",)
    config.train = defaults.training(steps=0, log_every=100, checkpoint_every=5000)
    config.evaluate = defaults.evaluation(
        episodes=300,
        batch=100,
        validation_episodes=50,
        probes=dict(solution_distance=dict(tolerance=0.01)),
    )
    config.replicas = defaults.seeds(1 if arg.quick else 3)
    # Reptile trains on the whole grid, the others on 10 points drawn anew.
    config.runs = named(
        {name: {"learner": name} | ({"task.shots": 50} if name == "reptile" else {}) for name in LEARNERS}
    )
    return config


def learners(arg: ConfigDict) -> dict:
    """Those of `sinusoid.py`, each followed over its training."""
    steps = 500 if arg.quick else 10_000
    adam = dict(batch=25, steps=steps, validate_every=steps // 20)
    outer = dict(
        optimizer="sgd", learning_rate=0.1, decay="linear", steps=3 * steps, validate_every=3 * steps // 20
    )
    shared = dict(
        encoder="mlp",
        encoder_settings=dict(hidden=(64, 64), activation="tanh"),
        inner_lr=0.02,
        test=dict(inner_steps=32),
    )
    return {
        "reptile": dict(
            shared,
            kind="reptile",
            moments="fresh",
            inner_optimizer="sgd",
            inner_batch=10,
            inner_steps=5,
            train=outer,
            test=dict(inner_steps=32, inner_batch=None),
        ),
        "maml": dict(shared, kind="maml", inner_steps=1, train=adam),
        "fomaml": dict(shared, kind="maml", inner_steps=1, order="first", train=adam),
        "joint": dict(shared, kind="maml", inner_steps=0, train=adam),
        "untrained": dict(shared, kind="maml", inner_steps=0),
    }
