# SPDX-License-Identifier: Apache-2.0
"""Dense linear functions in context (Garg et al. 2022, arXiv 2208.01066), in a size for a laptop.

A causal Transformer is trained at every prefix of x1, y1, x2, y2, ... with y = w.x and fresh w, x ~ N(0, I);
the functions never exist on the host. Beside it, least squares and the mean label.

    python -m metaicl.main --config=configs/linear_functions.py            d = 3, 4,000 steps
    python -m metaicl.main --config=configs/linear_functions.py:quick      1,000 steps, still learning
    python -m metaicl.main --config=configs/linear_functions.py:dimensions=20,full    the published size

Expected: the squared error at 2 d points falls well under 1, the error of answering 0 divided by d; least
squares without noise is exact from d points on. Points, width and steps of the small sizes are our choice.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import named, parse_argument


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, dict(dimensions=3, noise=0.0, learner="causal", seeds=1))
    config = ConfigDict()
    config.seed = 0
    config.data = dict(kind="linear_functions", dimensions=arg.dimensions, noise=arg.noise)
    config.task = dict(shots=2 * arg.dimensions, queries=1, test_queries=1)
    shape = dict(width=256, layers=12, heads=8) if arg.full else dict(width=64, layers=3, heads=2)
    set_shape = dict(image_width=48, label_width=16, layers=3, heads=2, mlp=256)
    config.learners = {
        "causal": dict(kind="causal", max_points=2 * arg.dimensions + 1, **shape),
        "in_context": dict(kind="in_context", attention="packed", **set_shape),
        "least_squares": dict(kind="closed_form", method="ridge", penalty=1e-4, intercept=False),
        "nearest_3": dict(kind="closed_form", method="knn", neighbours=3),
    }
    config.learner = arg.learner
    config.baselines = ("least_squares", "nearest_3")
    steps = 500_000 if arg.full else 1000 if arg.quick else 4000
    config.train = defaults.training(
        steps=steps,
        batch=64,
        learning_rate=1e-4 if arg.full else 1e-3,
        warmup=0 if arg.full else steps // 20,
        decay="none" if arg.full else "cosine",
        clip=0.0 if arg.full else 1.0,
        log_every=50,
        checkpoint_every=steps // 4,
        validate_every=steps // 4,
    )
    config.evaluate = defaults.evaluation(
        episodes=1280,
        batch=64,
        validation_episodes=256,
        shot_curve=tuple(range(2 * arg.dimensions + 1)),
        shot_curve_episodes=1280,
    )
    config.replicas = defaults.seeds(arg.seeds)
    config.runs = named({f"dimensions={arg.dimensions}": {}})
    return config
