# SPDX-License-Identifier: Apache-2.0
"""Omniglot, 5 or 20 ways, 1 or 5 shots: MAML, FOMAML, ANIL, Reptile and their kin on the published splits.

    python -m metaicl.main --config=configs/omniglot.py                                Reptile, 5-way 1-shot
    python -m metaicl.main --config=configs/omniglot.py:5w1s,learner=reptile,quick     two minutes on two cores
    python -m metaicl.main --config=configs/omniglot.py:5w1s,learner=maml
    python -m metaicl.main --config=configs/omniglot.py:5w5s,learner=reptile+maml+anil,folder=PATH
    python -m metaicl.main --config=configs/omniglot.py:learner=all,split=maml,quick   every method on one test set
    python -m metaicl.main --config=configs/omniglot.py:20w1s,learner=reptile,full     the published schedule

`folder` holds the two official zip files; it is `$METAICL_DATA/omniglot` unless given, and `download=true` fetches
what is missing there. `split=reptile` (1,200 and 423 characters, training characters rotated) or `split=maml`
(1,100, 100 and 423, all rotated, inverted); each learner has its own by default.

The settings of `full` are those of the released code: Reptile as in openai/supervised-reptile (strided conv-4,
flattened, Adam with beta1 = 0 whose moments are carried), MAML as in cbfinn/maml (strided conv-4, spatial mean,
one inner step). `joint` trains on all tasks at once and adapts at test time only, `scratch` does not train. All are
tested transductively (batch norm over all queries of an episode) and not (one query beside the support), as two rows
of the table. The default and `quick` shorten the schedule: Reptile to 10,000 and 1,000 of its 100,000 outer steps,
the others to 2,000 and 600 of 60,000, with 16 tasks of the published 32.

Published, full schedule, 5-way 1-shot: Reptile 95.39 (97.68 transductive), MAML 98.7 (transductive).
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, named, parse_argument, separate

SHAPES = {"5w1s": (5, 1), "5w5s": (5, 5), "20w1s": (20, 1), "20w5s": (20, 5)}
DEFAULTS = dict(
    shape="5w1s", learner="reptile", split="", folder="$METAICL_DATA/omniglot", download=False, seeds=1
)
COLUMNS = dict(non_transductive=dict(batch_norm="non_transductive"))


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, DEFAULTS, positional="shape")
    if arg.shape not in SHAPES:
        raise ConfigError(f"{arg.shape!r} is not one of {', '.join(SHAPES)}.")
    ways, shots = SHAPES[arg.shape]
    config = ConfigDict()
    config.seed = 0
    config.data = defaults.omniglot(arg.folder, arg.download, arg.split or "reptile")
    config.task = defaults.classification(ways=ways, shots=shots, test_shots=shots)
    config.learners = separate(learners(arg, ways, shots))
    chosen = list(config.learners) if arg.learner == "all" else arg.learner.split("+")
    if unknown := [name for name in chosen if name not in config.learners]:
        raise ConfigError(f"learner={unknown[0]!r} is not one of {', '.join(config.learners)} (join with +).")
    config.learner = chosen[0]
    config.baselines = ()
    config.train = defaults.training(
        steps=60_000 if arg.full else 600 if arg.quick else 2000,
        batch=(32 if ways == 5 else 16) if arg.full else 16 if ways == 5 else 8,
        checkpoint_every=500,
    )
    config.evaluate = defaults.evaluation(episodes=10_000 if arg.full else 600)
    config.replicas = defaults.seeds(arg.seeds)
    config.runs = named({f"{arg.shape},learner={name}": run(arg, name, ways, shots) for name in chosen})
    return config


def learners(arg: ConfigDict, ways: int, shots: int) -> dict:
    """Each with its network, its adaptation in training and in test, and its outer schedule."""
    mean = dict(encoder="conv", encoder_settings=dict(defaults.STRIDED, pool="mean"), variants=COLUMNS)
    flat = dict(encoder="conv", encoder_settings=dict(defaults.STRIDED, pool="flatten"), variants=COLUMNS)
    one = dict(kind="maml", tasks_at_once=None if arg.full else 1)  # on a CPU the faster way
    if ways == 5:
        maml = dict(mean, inner_steps=1, inner_lr=0.4, test=dict(inner_steps=3), **one)
    else:
        maml = dict(mean, inner_steps=5, inner_lr=0.1, test=dict(inner_steps=5), **one)
    plus = dict(inner_steps=5, inner_lr=0.1, rates="layer", test=dict(inner_steps=5))
    steps = 60_000 if arg.full else 600 if arg.quick else 2000
    return {
        "maml": maml,
        "fomaml": dict(maml, order="first"),
        "protomaml": dict(maml, head="prototypes"),
        "anil": dict(maml, adapted="head"),
        "boil": dict(maml, adapted="body"),
        "meta_sgd": dict(maml, rates="parameter", inner_lr=0.1),
        "mamlpp": dict(maml, multi_step_until=steps // 10, first_order_until=0, **plus),
        "imaml": dict(mean, kind="implicit_maml", inner_steps=16, inner_lr=0.1, proximal=2.0),
        "reptile": dict(flat, **reptile(arg, ways)),
        "joint": dict(maml, inner_steps=0),
        "scratch": dict(maml, inner_steps=0, train=dict(steps=0), test=dict(inner_steps=50)),
        "prototypes": dict(
            kind="prototypes",
            encoder="conv",
            encoder_settings=dict(defaults.STRIDED, pool="flatten", norm="group"),
        ),
    }


def reptile(arg: ConfigDict, ways: int) -> dict:
    """The released commands of openai/supervised-reptile for Omniglot."""
    steps = (100_000 if ways == 5 else 200_000) if arg.full else 1000 if arg.quick else 10_000
    inner = dict(inner_batch=10, inner_steps=5, inner_lr=1e-3) if ways == 5 else {}
    inner = inner or dict(inner_batch=20, inner_steps=10, inner_lr=5e-4)
    return dict(
        kind="reptile",
        moments="carried",
        **inner,
        test=dict(inner_steps=50, inner_batch=5 if ways == 5 else 10),
        train=dict(batch=5, steps=steps, optimizer="sgd", learning_rate=1.0, decay="linear"),
    )


def run(arg: ConfigDict, name: str, ways: int, shots: int) -> dict:
    """One learner; Reptile trains with 10 shots whatever it is tested with, MAML with as many queries as shots."""
    overrides = {"learner": name}
    if name == "reptile":
        return overrides | {"task.shots": 10}
    return overrides | {"task.queries": max(shots, 1), "data.split": arg.split or "maml"}
