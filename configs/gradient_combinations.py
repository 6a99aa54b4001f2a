# SPDX-License-Identifier: Apache-2.0
"""Which sums of inner gradients learn to learn (Nichol et al. 2018, figure 3): ten combinations on Omniglot.

An inner loop of k disjoint minibatches gives gradients g1 .. gk. Moving along g1 alone is joint training;
along g1 + .. + gk it is Reptile; along gk alone first-order MAML. The sums are also taken as means, so that the
length of the outer step is not what matters.

    python -m metaicl.main --config=configs/gradient_combinations.py            8,000 iterations of each
    python -m metaicl.main --config=configs/gradient_combinations.py:quick      500
    python -m metaicl.main --config=configs/gradient_combinations.py:full       40,000, as published

Settings of the released commands: 5-way 5-shot, minibatches of 25 (5 images a class, disjoint), one task per
iteration, outer step falling linearly to 0 from 0.25 (divided by k for the means), evaluation after 5 full steps.
The released inner SGD has a rate of 0.003 and sums the loss over a minibatch; ours takes the mean, hence 0.075. The
published curves are of tasks of the test characters; here the curves are of validation characters (split of MAML),
the table of test characters.

Expected order: g1 learns nothing, g2 beats g1 + g2 a little, and more gradients are better.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import named, parse_argument

# name: (inner steps, along which of them, what the outer step of 0.25 is divided by)
CURVES = {
    "g1": (1, "all", 1),
    "g1+g2": (2, "all", 1),
    "mean of 2": (2, "all", 2),
    "g2": (2, "last", 1),
    "g1+g2+g3": (3, "all", 1),
    "mean of 3": (3, "all", 3),
    "g3": (3, "last", 1),
    "g1+g2+g3+g4": (4, "all", 1),
    "mean of 4": (4, "all", 4),
    "g4": (4, "last", 1),
}


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, dict(folder="$METAICL_DATA/omniglot", download=False))
    steps = 40_000 if arg.full else 500 if arg.quick else 8000
    config = ConfigDict()
    config.seed = 0
    config.data = defaults.omniglot(arg.folder, arg.download, "maml")
    # No queries: four minibatches take all 20 images of a character.
    config.task = defaults.classification(ways=5, shots=5, queries=0, test_shots=5)
    config.learners = {
        name: dict(
            kind="reptile",
            moments="fresh",
            inner_optimizer="sgd",
            inner_lr=0.003 * 25,
            inner_batch=25,
            inner_steps=k,
            direction=direction,
            encoder="conv",
            encoder_settings=dict(defaults.STRIDED, pool="flatten"),
            test=dict(inner_steps=5),
            train=dict(learning_rate=0.25 / divisor),
        )
        for name, (k, direction, divisor) in CURVES.items()
    }
    config.learner = "g1"
    config.baselines = ()
    config.train = defaults.training(
        steps=steps,
        optimizer="sgd",
        learning_rate=0.25,
        decay="linear",
        log_every=50,
        checkpoint_every=1000,
        validate_every=steps // 20,
    )
    config.evaluate = defaults.evaluation(episodes=10_000 if arg.full else 600, validation_episodes=100)
    config.replicas = {}
    config.runs = named({name: {"learner": name, "task.shots": 5 * k} for name, (k, _, _) in CURVES.items()})
    return config
