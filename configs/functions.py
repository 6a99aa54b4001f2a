# SPDX-License-Identifier: Apache-2.0
"""Function classes in context: what a Transformer pretrained on a mixture selects, and where it breaks.

Garg et al. 2022 (arXiv 2208.01066) train a causal Transformer on one class of functions; Yadlowsky et al. 2023
(arXiv 2311.00871) on mixtures of two, and find that it selects between them as well as specialists do, and answers
neither well outside of both. A figure is a few runs; figures that need the same models share their runs.

    python -m metaicl.main --config=configs/functions.py                 figure 1: mixture against specialists
    python -m metaicl.main --config=configs/functions.py:figure=2        error over examples for seven weights
    python -m metaicl.main --config=configs/functions.py:figure=3        error over non-zeros; whom the mixture follows
    python -m metaicl.main --config=configs/functions.py:figure=4        lines, sinusoids and what lies between: fits
    python -m metaicl.main --config=configs/functions.py:figure=5        ... over the whole weight of the combination
    python -m metaicl.main --config=configs/functions.py:figure=6        ... over frequencies far outside
    python -m metaicl.main --config=configs/functions.py:nonlinear       dense with network, network with tree
    python -m metaicl.main --config=configs/functions.py:garg            specialists of four classes, shifted inputs
    python -m metaicl.main --config=configs/functions.py:coverage        combinations, or frequencies, in pretraining
    python -m metaicl.main --config=configs/functions.py:size            four sizes of model on figures 3 and 5
    python -m metaicl.main --config=configs/functions.py:diversity       2^4 to 2^16 distinct functions in pretraining
    python -m metaicl.main --config=configs/functions.py:learn           dense functions alone, noisy and not

`quick` takes d = 3 and 1,000 steps (figure 2: two minutes). `long` takes d = 5, the paper's tiny model and 16,000
steps: 10 to 25 minutes of one core for each model, by what else runs. `full` is the published scale: 12 layers, 8
heads, width 256 (9.5 million parameters), d = 20, the published curriculum, 200,000 steps, 60,000 for the weights
between. `learner=in_context` trains the non-causal Transformer of about as many parameters on the same prompts; with
the same --workdir both stand in one report. `seeds=3` trains three of each.

Known of Garg et al.: model, optimiser, curriculum, classes, 1,280 prompts. Not published by Yadlowsky et al., and
chosen by us: that the class is drawn for every prompt; Garg's optimiser and curriculum; steps; x uniform in [-5, 5]
for curves; their slopes, amplitudes and frequencies, which give lines and sinusoids equal variance; that both ends
of a combination have it too; 3/4 of d examples in figure 3 and 20 (10) in 4 to 6; errors divided by the variance
of the class. So are all sizes below `full`, and their curriculum from 1 dimension to d.

Published, at `full` scale: the mixture is about as good as the better specialist on either class, each specialist far
worse on the class that it never saw, and none fits a combination. Measured here: `learn` ends at an error of .023
without noise and 1.25 times ridge regression's with it; `figure=2,long` at .023 to .035 for all seven weights, on both
classes (results/function_mixtures). The default sizes of the figures train too short for that: after 8 examples the
models of figure 2 are at .26 to .44.
"""

import math

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, named, parse_argument, separate

FIGURES = {
    "1": ("dense_sparse",),
    "2": ("dense_sparse", "dense_sparse_between"),
    "3": ("dense_sparse",),
    "4": ("line_sine",),
    "5": ("line_sine",),
    "6": ("line_sine",),
    "nonlinear": ("dense_network", "network_tree"),
    "garg": ("garg_linear", "garg_nonlinear"),
    "coverage": ("coverage_of_combinations", "coverage_of_frequencies"),
    "size": (
        *(f"size_{size}_linear" for size in ("tiny", "small", "standard", "large")),
        *(f"size_{size}_curves" for size in ("tiny", "small", "standard", "large")),
    ),
    "diversity": ("diversity",),
    "learn": ("learn",),
}
ENDS, BETWEEN = (0.0, 0.5, 1.0), (0.1, 0.25, 0.75, 0.9)
# Width, layers and heads. The published ones, and a larger; then what stands for them on a laptop.
SIZES = {"tiny": (64, 3, 2), "small": (128, 6, 4), "standard": (256, 12, 8), "large": (512, 16, 8)}
SMALL_SIZES = {"tiny": (16, 1, 1), "small": (32, 2, 2), "standard": (64, 3, 2), "large": (96, 4, 4)}
CURVES = dict(distribution="uniform", interval=(-5.0, 5.0))
SLOPE, INTERCEPT = 0.2, math.sqrt(1 / 6)  # of lines, which so have the variance of sinusoids, 1/2
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
COVERAGES = (0.0, 0.01, 0.05, 0.2, 0.5)
EXPONENTS = (4, 6, 8, 10, 12, 14, 16)


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    defaults_of_argument = dict(figure="1", learner="causal", seeds=1)
    arg = parse_argument(argument, defaults_of_argument, flags=("quick", "long", "full"), positional="figure")
    if arg.figure not in FIGURES:
        raise ConfigError(f"figure={arg.figure!r}; there are {', '.join(FIGURES)}.")
    if arg.learner not in ("causal", "in_context"):
        raise ConfigError(f"learner={arg.learner!r}; there are causal and in_context.")
    if arg.quick + arg.long + arg.full > 1:
        raise ConfigError("quick, long and full are sizes: give one of them.")
    arg.long = learning = arg.long or (arg.figure == "learn" and not (arg.quick or arg.full))
    d = 20 if arg.full else 3 if arg.quick else 5 if learning else 4
    steps = 200_000 if arg.full else 1000 if arg.quick else 16_000 if learning else 3500
    config = ConfigDict()
    config.seed = 0
    config.label = ""
    config.data = defaults.functions(d, fewest=0 if arg.learner == "in_context" else -1)
    # One query a prompt is what the causal learner's last prefix is; the other has no prefixes to learn from.
    config.task = dict(shots=2 * d, queries=2 * d if arg.learner == "in_context" else 1, test_queries=1)
    config.learners = separate(learners("standard", arg))
    config.learner = arg.learner
    config.baselines = ("least_squares", "nearest_3")
    config.train = defaults.training(
        steps=steps,
        batch=64,
        learning_rate=1e-4 if arg.full else 1e-3 if learning else 3e-3,
        warmup=0 if arg.full else steps // 20,
        decay="none" if arg.full else "cosine",
        clip=0.0 if arg.full else 1.0,
        log_every=50,
        checkpoint_every=steps // 4,
        validate_every=steps // 4,
    )
    config.evaluate = defaults.evaluation(
        episodes=1280 if arg.full else 256 if arg.quick else 512,
        batch=128,
        select="last",  # as published
        validation_episodes=256,
        shot_curve=shot_curve(2 * d),
        shot_curve_episodes=1280 if arg.full else 256 if arg.quick else 512,
    )
    config.replicas = {}
    chosen = {name: RUNS[name](d, arg) for name in FIGURES[arg.figure]}
    suffix = "" if arg.learner == "causal" else f",learner={arg.learner}"
    config.runs = named({name + suffix: run for name, run in chosen.items()})
    return config


def learners(size: str, arg: ConfigDict) -> dict:
    """Both Transformers in a size, about equal in parameters, and the baselines."""
    width, layers, heads = shape_of(size, arg)
    shape = dict(layers=layers, heads=heads, mlp=4 * width)
    return {
        "causal": dict(kind="causal", max_points=101, width=width, **shape),
        "in_context": dict(kind="in_context", attention="packed", **split_width(width), **shape),
        "least_squares": dict(kind="least_squares"),
        "averaging": dict(kind="averaging"),
        "lasso": dict(kind="lasso", alpha=0.01),  # the penalty that the paper plots
        "ridge": dict(kind="closed_form", method="ridge", penalty=1.0, intercept=False),
        "straight_line": dict(kind="least_squares", intercept=True),
        "nearest_3": dict(kind="closed_form", method="knn", neighbours=3),
        "network": dict(kind="scratch"),
        "tree": dict(kind="greedy_tree"),
        "bayes": dict(kind="bayes_mixture", noise=1e-3, components={}),
        "finite_prior": dict(kind="bayes_mixture", components={}),  # knows the functions of pretraining
    }


def shape_of(size: str, arg: ConfigDict) -> tuple[int, int, int]:
    """Width, layers and heads of a size; on a laptop the figures take a small model, `long` the paper's tiny one."""
    if arg.full:
        return SIZES[size]
    smaller = size == "standard" and arg.figure != "size" and not arg.long
    return SMALL_SIZES["small" if smaller or arg.quick else size]


def shot_curve(most: int) -> tuple[int, ...]:
    """All numbers of examples up to 12, then every second."""
    return tuple(k for k in range(most + 1) if k <= 12 or k % 2 == 0)


def replicas(models: dict[str, dict], arg: ConfigDict) -> ConfigDict:
    """`models` (label: overrides) times seeds, all trained as one program."""
    suffix = "" if arg.learner == "causal" else " (non-causal)"
    return named(
        {
            f"{label.replace(' ', '-').replace('.', '_')},seed={seed}": overrides
            | {"label": label + suffix, "seed": seed}
            for label, overrides in models.items()
            for seed in range(arg.seeds)
        }
    )


def pair(first: str, second: str, weights: tuple[float, ...], arg: ConfigDict) -> ConfigDict:
    """A model for every weight of the first class; the specialists are called by their class."""

    def label(weight):
        return f"{first} only" if weight == 1 else f"{second} only" if weight == 0 else f"mixture {weight:g}"

    models = {
        label(w): {f"data.weights.{first}": w, f"data.weights.{second}": round(1 - w, 6)} for w in weights
    }
    return replicas(models, arg)


def compared(first: str, second: str, arg: ConfigDict) -> tuple[tuple[str, str], ...]:
    """The mixture's answers are compared to those of both specialists."""
    suffix = "" if arg.learner == "causal" else " (non-causal)"
    return tuple((f"mixture 0.5{suffix}", f"{name} only{suffix}") for name in (first, second))


def plain(*names: str) -> tuple[dict, ...]:
    """Test sets that are classes as they are."""
    return tuple(dict(name=name, of=name) for name in names)


def dense_sparse(weights: tuple[float, ...], steps: int | None):
    """Dense and sparse linear functions, mixed with these weights: figures 1 to 3."""

    def run(d, arg):
        nonzeros = [s for s in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20) if s <= d]
        sweep = [
            dict(
                name="non-zeros",
                of="sparse",
                settings=dict(nonzeros=s),
                shots=3 * d // 4,
                setting="nonzeros",
                value=s,
            )
            for s in nonzeros
        ]
        few = 2 if d > 3 else 1
        whole = {
            "baselines": ("bayes", "least_squares", "lasso", "averaging", "nearest_3"),
            "learners.bayes.components": dict(
                dense=dict(kind="dense_linear", weight=0.5),
                sparse=dict(kind="sparse_linear", nonzeros=few, weight=0.5),
            ),
            "data.classes": dict(
                dense=dict(kind="dense_linear"), sparse=dict(kind="sparse_linear", nonzeros=few)
            ),
            "data.weights": dict(dense=0.5, sparse=0.5),
            "data.test": (*plain("dense", "sparse"), *sweep),
            "replicas": pair("dense", "sparse", weights, arg),
            "evaluate.compare": compared("dense", "sparse", arg) if 0.5 in weights else (),
        }
        return whole | curriculum(arg, 2 * d + 1) | ({"train.steps": steps} if steps and arg.full else {})

    return run


def curriculum(arg: ConfigDict, points: int, later: bool = False) -> dict:
    """The published one at the published scale (`later`: of networks and trees); else 1 to d dimensions, all points.

    On a laptop all dimensions take part after half of the steps at the latest.
    """
    start = dict(dimensions=5, every=2000, points=26 if later else 11, more_points=5 if later else 2)
    small = dict(dimensions=1, every=100 if arg.quick else 300, points=points, more_points=1)
    return {f"data.curriculum.{key}": value for key, value in (start if arg.full else small).items()}


def one_dimension(arg: ConfigDict) -> dict:
    """Lines and sinusoids of variance 1/2 in one variable."""
    shots = 20 if arg.full else 10
    return {
        "data.dimensions": 1,
        "data.inputs": CURVES,
        "data.classes": dict(
            line=dict(kind="line", slope=SLOPE, intercept=INTERCEPT),
            sine=dict(kind="sinusoid", frequency=frequencies(arg)),
            combination=dict(kind="combination", of=("line", "sine"), share=(0.5, 0.5)),
        ),
        "data.weights": dict(line=0.5, sine=0.5),
        "task.shots": shots,
        "task.test_queries": 64,
        "evaluate.shot_curve": shot_curve(shots),
        "evaluate.fits": 3,
    }


def frequencies(arg: ConfigDict) -> tuple[float, float]:
    """Of the sinusoids in pretraining."""
    return (0.5, 2.0) if arg.full else (0.5, 1.0)


def sweep_of_shares() -> list[dict]:
    """Combinations from line (0) to sinusoid (1)."""
    return [
        dict(name="combinations", of="combination", settings=dict(share=(s, s)), setting="share", value=s)
        for s in SHARES
    ]


def sweep_of_frequencies(arg: ConfigDict) -> list[dict]:
    """Single frequencies, from a fifth of the lowest to five times the highest."""
    low, high = frequencies(arg)
    middle = math.sqrt(low * high)
    values = [low / 5, low / 2, low, middle, high, 1.5 * high, 2 * high, 3 * high, 5 * high]
    return [
        dict(
            name="frequencies",
            of="sine",
            settings=dict(frequency=(f, f)),
            setting="frequency",
            value=float(f"{f:.3g}"),
        )
        for f in values
    ]


def line_sine(d, arg):
    """Lines and sinusoids: figures 4 to 6."""
    return one_dimension(arg) | {
        "data.test": (*plain("line", "sine", "combination"), *sweep_of_shares(), *sweep_of_frequencies(arg)),
        "replicas": pair("line", "sine", ENDS, arg),
        "evaluate.compare": compared("line", "sine", arg),
        "baselines": ("bayes", "straight_line", "nearest_3"),
        # What the grid of frequencies and phases leaves of a curve is below this noise.
        "learners.bayes.noise": 0.02,
        "learners.bayes.components": dict(
            line=dict(kind="curve", share=(0.0, 0.0), slope=SLOPE, intercept=INTERCEPT, weight=0.5),
            sine=dict(kind="curve", frequency=frequencies(arg), cells=(1, 1, 24, 32), weight=0.5),
        ),
    }


def two_classes(first: str, second: str):
    """A pair of classes of which one is not linear, and the combinations between them."""
    kinds = dict(
        dense=dict(kind="dense_linear"),
        network=dict(kind="relu_network"),
        tree=dict(kind="decision_tree", scale=(1.0, 1.0)),
    )

    def run(d, arg):
        shots = 100 if arg.full else 2 * d
        classes = {name: dict(kinds[name]) for name in (first, second)}
        if "tree" in classes:  # of the variance of the network, else the loss hardly counts it
            classes["tree"]["scale"] = (math.sqrt(d), math.sqrt(d))
        between = dict(kind="combination", of=(first, second), share=(0.5, 0.5))
        return curriculum(arg, shots + 1, later=True) | {
            "baselines": ("network", *(["least_squares"] if first == "dense" else ["tree"]), "nearest_3"),
            "data.classes": classes | dict(combination=between),
            "data.weights": {first: 0.5, second: 0.5},
            "data.test": (*plain(first, second), *sweep_of_shares()),
            "task.shots": shots,
            "evaluate.shot_curve": shot_curve(shots),
            "replicas": pair(first, second, ENDS, arg),
            "evaluate.compare": compared(first, second, arg),
        }

    return run


def specialists(names: tuple[str, ...], shifts: bool, points: int):
    """Garg's models, one for each class; that of dense functions also on shifted inputs."""

    def run(d, arg):
        kinds = dict(
            dense=dict(kind="dense_linear"),
            sparse=dict(kind="sparse_linear", nonzeros=3 if d > 3 else 1),
            network=dict(kind="relu_network"),
            tree=dict(kind="decision_tree"),
            noisy=dict(kind="noisy_linear", noise=1.0),
        )
        shots = points - 1 if arg.full else 2 * d
        models = {f"{n} only": {f"data.weights.{m}": float(n == m) for m in names} for n in names}
        return curriculum(arg, shots + 1, later=not shifts) | {
            "baselines": (
                ("least_squares", "lasso", "averaging", "nearest_3")
                if shifts
                else ("network", "tree", "least_squares", "nearest_3")
            ),
            "data.classes": kinds,
            "data.weights": {name: float(name == names[0]) for name in names},
            "data.test": (*plain(*names), *(shifted_sets(d) if shifts else plain("dense"))),
            "task.shots": shots,
            "evaluate.shot_curve": shot_curve(shots),
            "replicas": replicas(models, arg),
        }

    return run


def shifted_sets(d: int) -> list[dict]:
    """The test-time inputs of the paper's code, on dense functions."""
    shifts = [
        dict(name=shift, of="dense", inputs=dict(shift=shift))
        for shift in ("orthants", "repeated", "subspace", "skewed")
    ]
    shifts.append(dict(name="orthogonal", of="dense", inputs=dict(shift="orthogonal"), shots=d - 1))
    for times in (1 / 3, 0.5, 2.0, 3.0):
        called = f"{times:.3g}"
        shifts.append(dict(name=f"x times {called}", of="dense", inputs=dict(scale=times)))
        shifts.append(dict(name=f"y times {called}", of="dense", settings=dict(scale=(times, times))))
    return [*shifts, dict(name="noise", of="noisy")]


def coverage(share: float) -> dict:
    """Makes a model a point of a curve over the share of pretraining."""
    return {"evaluate.point.setting": "coverage", "evaluate.point.value": share}


def coverage_of_combinations(d, arg):
    """Lines, sinusoids and a growing share of all that lies between them."""
    curves = one_dimension(arg)
    curves["data.classes"]["between"] = dict(kind="combination", of=("line", "sine"), share=(0.0, 1.0))
    models = {
        f"coverage {c:g}": {
            "data.weights.line": (1 - c) / 2,
            "data.weights.sine": (1 - c) / 2,
            "data.weights.between": c,
        }
        | coverage(c)
        for c in COVERAGES
    }
    return curves | {
        "data.weights": dict(line=0.5, sine=0.5, between=0.0),
        "data.test": (*plain("line", "sine", "combination"), *sweep_of_shares()),
        "replicas": replicas(models, arg),
        "baselines": ("straight_line", "nearest_3"),
    }


def coverage_of_frequencies(d, arg):
    """Sinusoids of the usual frequencies and a growing share of up to five times the highest."""
    low, high = frequencies(arg)
    models = {
        f"coverage {c:g}": {"data.weights.sine": 1 - c, "data.weights.fast": c} | coverage(c)
        for c in COVERAGES
    }
    curves = one_dimension(arg)
    curves["data.classes"]["fast"] = dict(kind="sinusoid", frequency=(low / 5, 5 * high))
    return curves | {
        "data.weights": dict(sine=1.0, fast=0.0),
        "data.test": (*plain("sine", "fast"), *sweep_of_frequencies(arg)),
        "replicas": replicas(models, arg),
        "baselines": ("straight_line", "nearest_3"),
    }


def sized(size: str, classes):
    """The mixture of a pair of classes, learned by one size of model."""

    def run(d, arg):
        width, layers, heads = shape_of(size, arg)
        shape = dict(layers=layers, heads=heads, mlp=4 * width)
        shape |= {"width": width} if arg.learner == "causal" else split_width(width)
        return (
            classes(d, arg)
            | {f"learners.{arg.learner}.{key}": value for key, value in shape.items()}
            | {"replicas": replicas({size: {}}, arg), "evaluate.compare": ()}
        )

    return run


def split_width(width: int) -> dict:
    """Three quarters of a token for x, one for y."""
    return dict(image_width=3 * width // 4, label_width=width // 4)


def diversity(d, arg):
    """Dense functions out of 2^4 to 2^16 weight vectors; noise makes ridge and the estimator of the pool differ."""
    noise = 0.5
    scale = math.sqrt(d / (d + noise**2))  # noisy functions have the variance of noiseless ones
    known = "learners.finite_prior.components.pooled"  # the best estimator for the functions of the pool
    models = {
        f"pool {2**e}": {
            "evaluate.point.setting": "pool",
            "evaluate.point.value": float(2**e),
            "data.classes.pooled.pool": 2**e,
            "data.classes.pooled.pool_seed": e,
            f"{known}.pool": 2**e,
            f"{known}.pool_seed": e,
        }
        for e in EXPONENTS
    }
    chosen = replicas(models, arg)
    for replica in chosen.values():
        replica.label = ""  # one learner, and a curve over the pool
    noisy = dict(kind="noisy_linear", noise=noise)
    return curriculum(arg, 2 * d + 1) | {
        "data.classes": dict(all=noisy, pooled=noisy | dict(pool=16, pool_seed=0)),
        "data.weights": dict(pooled=1.0),
        "data.test": plain("all", "pooled"),
        "evaluate.shot_curve": (),
        "replicas": chosen,
        "baselines": ("ridge", "finite_prior"),
        "learners.ridge.penalty": noise**2,  # Bayes-optimal for all functions
        "learners.finite_prior.components": dict(
            pooled=dict(kind="finite_linear", noise=noise * scale, scale=scale, pool=16, pool_seed=0)
        ),
        "evaluate.point.setting": "pool",
    }


def learn(d, arg):
    """Dense functions alone, noiseless and noisy, long enough to be learned on two cores."""
    rescaled = math.sqrt(d / (d + 0.5**2))  # noisy functions have the variance of noiseless ones
    return curriculum(arg, 2 * d + 1) | {
        "data.classes": dict(dense=dict(kind="dense_linear"), noisy=dict(kind="noisy_linear", noise=0.5)),
        "data.weights": dict(dense=0.5, noisy=0.5),
        "data.test": plain("dense", "noisy"),
        "replicas": replicas({"dense and noisy": {}}, arg),
        "baselines": ("bayes", "least_squares", "ridge", "averaging", "nearest_3"),
        "learners.bayes.components": dict(
            dense=dict(kind="dense_linear", weight=0.5),
            noisy=dict(kind="dense_linear", weight=0.5, scale=rescaled, noise=0.5 * rescaled),
        ),
        "learners.ridge.penalty": 0.25,
    }


RUNS = {
    "dense_sparse": dense_sparse(ENDS, None),
    "dense_sparse_between": dense_sparse(BETWEEN, 60_000),
    "line_sine": line_sine,
    "dense_network": two_classes("dense", "network"),
    "network_tree": two_classes("network", "tree"),
    "garg_linear": specialists(("dense", "sparse"), True, 41),
    "garg_nonlinear": specialists(("network", "tree"), False, 101),
    "coverage_of_combinations": coverage_of_combinations,
    "coverage_of_frequencies": coverage_of_frequencies,
    **{f"size_{size}_linear": sized(size, dense_sparse(ENDS, None)) for size in SIZES},
    **{f"size_{size}_curves": sized(size, line_sine) for size in SIZES},
    "diversity": diversity,
    "learn": learn,
}
