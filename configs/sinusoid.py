# SPDX-License-Identifier: Apache-2.0
"""Sine curves from a few points: MAML, FOMAML, Reptile, and joint training, which answers 0 everywhere.

Two published families: `maml` (Finn et al. 2017, section 5.1: phases in [0, pi], 10 random points, network
40-40 with relu) and `reptile` (Nichol et al. 2018 and their demonstration: phases in [0, 2 pi], a grid of 50
points, 10 of them to adapt to, network 64-64 with tanh). Every learner is tested after 0 to 32 gradient steps on
10 points, and the report draws the fits.

    python -m metaicl.main --config=configs/sinusoid.py              both families, about 9 minutes on two busy cores
    python -m metaicl.main --config=configs/sinusoid.py:reptile      one of them
    python -m metaicl.main --config=configs/sinusoid.py:learner=maml+reptile,quick
    python -m metaicl.main --config=configs/sinusoid.py:full         the published numbers of steps

Inner rates are the published ones (MAML 0.01, Reptile 0.02), MAML's inner loop trains with one step, Reptile's
with one pass over the 50 points in minibatches of 10. The shorter schedules of the default are our choice.
Expected mean squared error after 32 steps: 0.1 to 0.2 for MAML and FOMAML, 0.5 for Reptile; joint training, whose
answer before adaptation is flat, 1.5 on the `maml` family and 4 on the `reptile` family.
"""

import math

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, named, parse_argument, separate

FAMILIES = ("maml", "reptile")
STEPS = (0, 1, 2, 4, 8, 16, 32)


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, dict(family="", learner="maml+fomaml+reptile+joint"), positional="family")
    families = [arg.family] if arg.family else list(FAMILIES)
    chosen = arg.learner.split("+")
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        kind="sinusoids",
        name="",
        amplitude=(0.1, 5.0),
        phase=(0.0, math.pi),
        interval=(-5.0, 5.0),
        grid=50,
    )
    config.task = dict(shots=10, queries=10, test_shots=10, test_queries=50)
    config.learners = separate(learners(arg))
    for given, names in ((families, FAMILIES), (chosen, list(config.learners))):
        if unknown := [name for name in given if name not in names]:
            raise ConfigError(f"{unknown[0]!r} is not one of {', '.join(names)}.")
    config.learner = chosen[0]
    config.baselines = ()
    config.train = defaults.training(steps=0, batch=25, log_every=100, checkpoint_every=5000)
    config.evaluate = defaults.evaluation(batch=100, fits=3)
    config.replicas = {}
    config.runs = named(
        {f"family={family},learner={name}": run(family, name) for family in families for name in chosen}
    )
    return config


def learners(arg: ConfigDict) -> dict:
    """Every learner is tested after 32 gradient steps on 10 points, and after the other numbers of `STEPS`."""
    shared = dict(
        encoder="mlp",
        encoder_settings=dict(hidden=(40, 40), activation="relu"),
        inner_lr=0.01,
        test=dict(inner_steps=STEPS[-1]),
        sweep=dict(setting="inner_steps", values=STEPS),
    )
    adam = dict(steps=70_000 if arg.full else 2000 if arg.quick else 10_000)
    outer = dict(batch=1, optimizer="sgd", learning_rate=0.1, decay="linear")
    outer["steps"] = 4000 if arg.quick else 30_000
    reptile = dict(moments="fresh", inner_optimizer="sgd", inner_batch=10, inner_steps=5, train=outer)
    reptile["test"] = dict(shared["test"], inner_batch=None)
    return {
        "maml": dict(shared, kind="maml", inner_steps=1, train=adam),
        "fomaml": dict(shared, kind="maml", inner_steps=1, order="first", train=adam),
        "reptile": dict(shared, kind="reptile", **reptile),
        "joint": dict(shared, kind="maml", inner_steps=0, train=adam),
        "scratch": dict(shared, kind="maml", inner_steps=0),
    }


def run(family: str, name: str) -> dict:
    """One learner on one family. Reptile trains on the whole grid, the others on 10 points drawn anew."""
    overrides = {"learner": name, "data.name": f"{family}_family"}
    if family == "reptile":
        overrides |= {
            "data.phase": (0.0, 2 * math.pi),
            f"learners.{name}.encoder_settings": dict(hidden=(64, 64), activation="tanh"),
            f"learners.{name}.inner_lr": 0.02,
        }
    if name == "reptile":
        overrides |= {"task.shots": 50}
    return overrides
