# SPDX-License-Identifier: Apache-2.0
"""One data set after another, without going back: does the order matter, and what is forgotten?

After every stage all data sets are measured on images that none of their stages trained on (classes are shared). The
report draws what each stage changed, and the average accuracy over stages of every order beside joint training (one
stage with everything), replay (every stage repeats the data sets so far) and the untrained learner. The protocol is
that of GEOM-S (arXiv 2507.05019), which gives neither its measure of transfer nor the rules of its orders: ours are
in `metaicl/report/transfer.py` and `metaicl/curricula/`.

    python -m metaicl.main --config=configs/sequential.py                      30 stages of the embedded album
    python -m metaicl.main --config=configs/sequential.py:quick                6 data sets of two domains
    python -m metaicl.main --config=configs/sequential.py:order=domain+E2E+H2H+Switch+path
    python -m metaicl.main --config=configs/sequential.py:order=domain+adaptive,bounds=none
    python -m metaicl.main --config=configs/sequential.py:order=E2H+H2E,budget=proportional,seeds=3,learner=maml
    python -m metaicl.main --config=configs/sequential.py:album=PATH,backbone=squeezenet,weights=PATH,full

| order      | next data set                                                                                 |
|------------|-----------------------------------------------------------------------------------------------|
| `domain`   | in alphabetical order, domain after domain                                                    |
| `E2H`      | from easy to hard, by how well ridge regression classifies held-out training images           |
| `H2E`      | from hard to easy                                                                             |
| `E2E`      | the nearest to the one before, by OTDD; `start=` names the first one                          |
| `H2H`      | the farthest                                                                                  |
| `Switch`   | the nearest and the farthest in turn                                                          |
| `path`     | along the shortest path through all                                                           |
| `random`   | drawn from the seed                                                                           |
| `adaptive` | chosen by a bandit (Exp3) from the gain in validation; takes a part of the images to validate |

`budget` is `static` (every stage the same steps) or `proportional` to the images of a data set, or both joined by +;
all runs take equally many steps in all, `steps` for each data set. `reset` begins every stage with a fresh optimiser.
`full` takes more of everything, for a GPU. `configs/curricula.py` has all orders at once.

Of `quick` (2.5 minutes on two busy CPU cores) expect about 65 % at the end of an order and 71 % with replay or jointly,
after 20 % untrained.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, named, parse_argument, separate

DEFAULTS = defaults.ALBUM | dict(
    learner="in_context",
    order="",
    bounds="replay+joint",
    budget="static",
    start="",
    steps=0,
    stages=0,
    episodes=0,
    seeds=1,
)
BUDGETS = ("static", "proportional")
ORDERS = ("domain", "E2H", "H2E", "E2E", "H2H", "Switch", "path", "random", "adaptive")
FEW = ("shrubs", "flowers", "leaves", "gears", "flanges", "circuit_parts")


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    from metaicl.experiment.problems import album_names  # heavy: only where a config is asked for

    arg = parse_argument(argument, DEFAULTS, flags=("quick", "full", "reset"))
    frozen = arg.backbone != "none"
    orders = _several(arg, "order", "domain+H2E" if arg.quick else "domain+E2H+H2E", ORDERS)
    learners = defaults.small_learners(frozen)
    trained = tuple(name for name in learners if name != "ridge")
    chosen = _several(arg, "learner", "in_context", trained)
    budgets = _several(arg, "budget", "static", BUDGETS)
    config = ConfigDict()
    config.seed = 0
    config.data = data(arg, validates="adaptive" in orders)
    validated = dict(validation_shots=3, validation_queries=1)  # a fifth of 20 images is enough for it
    config.task = defaults.classification(ways=5, shots=5, queries=3, test_queries=3, **validated)
    config.learners = separate(learners)
    config.learner = chosen[0]
    config.baselines = ("ridge",)
    steps = len(album_names(config.data)) * (arg.steps or (1000 if arg.full else 40 if arg.quick else 25))
    config.train = defaults.training(
        steps=steps,
        batch=16 if arg.full else 4,
        clip=1.0,
        checkpoint_every=max(steps // 10, 1),
    )
    config.evaluate = defaults.evaluation(
        episodes=600 if arg.full else 100,
        batch=25,
        select="last",
        validation_episodes=50 if arg.full else 10,  # of the adaptive order
    )
    config.sequence = sequence(arg, frozen)
    config.replicas = defaults.seeds(arg.seeds)
    config.runs = named(runs(arg, orders, budgets, chosen))
    return config


def data(arg: ConfigDict, validates: bool) -> dict:
    """What is read; every class's images are shared out between training and test."""
    fractions = (0.4, 0.2, 0.4) if validates else (0.6, 0.0, 0.4)
    return defaults.chosen_album(arg, few=FEW if arg.quick else (), split="images", fractions=fractions)


def sequence(arg: ConfigDict, frozen: bool) -> dict:
    """Stages, and what is measured of the data sets to order them."""
    return dict(
        order="domain",
        replay=False,
        budget="static",
        reset_optimizer=arg.reset,
        start=arg.start,
        stages=arg.stages,  # of the adaptive order; 0 for as many as there are data sets
        bandit="exp3",
        rate=0.3,
        episodes=arg.episodes or (100 if arg.full else 25),  # of every data set after every stage
        probe=dict(classes=20, images=40, learner=defaults.small_learners(frozen)["ridge"]),
        distance=dict(inner="gaussian", samples=1000),
    )


def runs(arg: ConfigDict, orders: list[str], budgets: list[str], chosen: list[str]) -> dict:
    """A run for every order and budget, and the bounds; the first of each learner has the baseline beside it."""
    bounds = [] if arg.bounds == "none" else arg.bounds.split("+")
    if unknown := [name for name in bounds if name not in ("replay", "joint")]:
        raise ConfigError(f"bounds={unknown[0]!r} is not one of replay, joint, none (join several with +).")
    kinds: dict = {}
    for budget in budgets:
        name = (lambda order, own=f",{budget}": order + own) if len(budgets) > 1 else "order={}".format
        shared = {"sequence.budget": budget}
        kinds |= {name(order): {"sequence.order": order, **shared} for order in orders}
        if "replay" in bounds:
            replayed = {"sequence.order": orders[0], "sequence.replay": True, **shared}
            kinds[name(f"{orders[0]},replay")] = replayed
    if "joint" in bounds:
        kinds["joint"] = {"sequence.order": "joint"}
    result: dict = {}
    for learner in chosen:
        for name, overrides in kinds.items():
            own = overrides | {"learner": learner} | ({"baselines": ()} if result else {})
            result[f"{name},learner={learner}" if len(chosen) > 1 else name] = own
    return result


def _several(arg: ConfigDict, key: str, default: str, known: tuple[str, ...]) -> list[str]:
    """Names joined by +, each of them known."""
    names = (arg[key] or default).split("+")
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"{key}={unknown[0]!r} is not one of {', '.join(known)} (join several with +).")
    return list(dict.fromkeys(names))
