# SPDX-License-Identifier: Apache-2.0
"""The last minibatch of first-order MAML: shared with the others, or kept separate (Nichol et al. 2018, figure 4).

First-order MAML moves along its last inner gradient. If that minibatch repeats images of earlier ones (a shared
tail), it measures what the inner loop has memorised, and learning suffers as soon as the minibatches start to
cycle; with a tail of its own, and for Reptile, it should not. Three panels: over the number of inner steps, over
the size of the minibatch, and over the outer step with full batches.

    python -m metaicl.main --config=configs/tails.py                 all three, 1,000 outer steps for each point
    python -m metaicl.main --config=configs/tails.py:panel=batch     one of `steps`, `batch`, `outer`
    python -m metaicl.main --config=configs/tails.py:quick           the ends of the first panel, 300 outer steps
    python -m metaicl.main --config=configs/tails.py:full            40,000 outer steps

Expected over the inner steps: 81 to 93 % with Reptile, 83 to 85 % with a separate tail, 84 % with a shared one before
minibatches repeat and 65 % after.

Published are curves without numbers, for 5-way 5-shot Omniglot, and no commands. Our choice: of the 20 images of a
character 15 are the support and up to 5 the separate tail. Minibatches of 25 start to repeat images after 3 inner
steps, and in 4 inner steps those of 20 do. The outer steps are compared with 10 images a class in the support, all
of them in every one of 4 inner steps, and 10 in the separate tail. The inner rate and the outer step, which falls
linearly from 0.25 to 0, are those of `gradient_combinations.py`.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, named, parse_argument, separate

PANELS = {
    "steps": ("inner steps", (2, 3, 4, 6)),
    "batch": ("inner batch", (5, 15, 20, 25)),
    "outer": ("outer step", (0.1, 0.25, 0.5)),
}
METHODS = {
    "reptile": dict(direction="all"),
    "shared, cycling": dict(direction="last"),
    "shared, replaced": dict(direction="last", inner_sampling="replacement"),
    "separate, cycling": dict(direction="last", tail="separate"),
    "separate, replaced": dict(direction="last", tail="separate", inner_sampling="replacement"),
}


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, dict(panel="", folder="$METAICL_DATA/omniglot", download=False))
    if arg.panel and arg.panel not in PANELS:
        raise ConfigError(f"panel={arg.panel!r} is not one of {', '.join(PANELS)}.")
    config = ConfigDict()
    config.seed = 0
    config.data = defaults.omniglot(arg.folder, arg.download, "reptile")
    config.task = defaults.classification(ways=5, shots=15, queries=5, test_shots=5)
    config.learners = separate({name: learner(method) for name, method in METHODS.items()})
    config.learner = "reptile"
    config.baselines = ()
    config.train = defaults.training(
        steps=40_000 if arg.full else 300 if arg.quick else 1000,
        optimizer="sgd",
        learning_rate=0.25,
        decay="linear",
        log_every=50,
        checkpoint_every=5000,
    )
    config.evaluate = defaults.evaluation(batch=100)
    config.replicas = {}
    config.runs = named(points(arg))
    return config


def learner(method: dict) -> dict:
    """All are tested after 5 steps on the whole support, as in the released commands."""
    return dict(
        kind="reptile",
        moments="fresh",
        inner_optimizer="sgd",
        inner_lr=0.003 * 25,
        inner_batch=25,
        inner_steps=4,
        encoder="conv",
        encoder_settings=dict(defaults.STRIDED, pool="flatten"),
        test=dict(inner_steps=5, inner_batch=None, tail="shared"),
        **method,
    )


def points(arg: ConfigDict) -> dict[str, dict]:
    """The runs: every method at every value of the panels that were asked for."""
    chosen = [arg.panel] if arg.panel else ["steps"] if arg.quick else list(PANELS)
    runs = {}
    for panel in chosen:
        setting, values = PANELS[panel]
        for value in (values[0], values[-1]) if arg.quick else values:
            for name in METHODS:
                # A full batch is the same however it is drawn.
                if panel != "outer" or "replaced" not in name:
                    at = {"evaluate.point.setting": setting, "evaluate.point.value": float(value)}
                    shown = value if panel != "outer" else f"{value:.0%}"  # no dots in names
                    runs[f"{panel}={shown},{name}"] = {"learner": name} | at | point(panel, name, value)
    return runs


def point(panel: str, name: str, value: float) -> dict:
    """What a value of a panel changes; the separate tail is as large as a minibatch."""
    if panel == "steps":
        return {f"learners.{name}.inner_steps": value}
    if panel == "batch":
        return {f"learners.{name}.inner_batch": value, "task.queries": value // 5}
    full = {"task.shots": 10, "task.queries": 10, f"learners.{name}.inner_batch": 50}
    return full | {"train.learning_rate": value}
