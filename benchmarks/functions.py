# SPDX-License-Identifier: Apache-2.0
"""Speed of in-context function learning: the training step, the Lasso over all prefixes, and replicas.

    python -m benchmarks.functions --json             all of it, at the published sizes
    python -m benchmarks.functions --json --quick     a smaller model, fewer prompts and rounds

Step: the causal Transformer of Garg et al. 2022 (12 layers, 8 heads, width 256; 64 prompts of 41 points, d = 20),
loss at every prefix and Adam, float32. The peer is the same model of `torch.nn` with
`scaled_dot_product_attention(is_causal=True)` and the fused Adam, and the same through `torch.compile` where there
is a C++ compiler; before timing, from the same weights and prompts, its gradient is compared with ours. The ratio is
against the faster one.

Lasso: alpha 0.01, no intercept, 1,280 noiseless prompts x 41 prefixes (0 to 40 examples), d = 20. The peer is a loop
over scikit-learn's `Lasso` on float64 arrays, at the loosest of its tolerances at which what it minimises is as small
as ours to 1e-4 of it on a sample of the prompts; ours may nowhere be larger. (Coefficients cannot be asked to agree:
where columns are nearly dependent scikit-learn stops at others that are almost as good. How many do is said.) Its
time is that of the sample, scaled up. That at its default tolerance, equal or not, stands beside it.

Replicas: one step of seven models side by side against seven steps of one, of the paper's tiny size. On an
accelerator, `--peak` (its matrix products in TFLOP/s) gives the share of it that the training step uses.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.maml import Ours, distance, initial
from benchmarks.timing import alternate, command_of, compared, median, options_of, tell
from metaicl.episode import Episode, Examples, TaskSpec
from metaicl.learners import Learner, make_learner
from metaicl.learners.lasso import lasso_weights
from metaicl.train import update_step

DIMENSIONS, POINTS, BATCH, RATE = 20, 41, 64, 1e-4
STANDARD = dict(width=256, layers=12, heads=8)
SMALL = dict(width=128, layers=6, heads=4)
TINY = dict(width=64, layers=3, heads=2)
ALPHA, PROMPTS, CHUNK = 0.01, 1280, 64
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)
REPLICAS = 7
TARGETS = {"step": 1.0, "lasso": 20.0, "replicas": 1.0}
EQUAL = {"gradient": 1e-4, "lasso": 1e-4}


def make_prompts(count: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Noiseless linear functions: `x [B, n, d]`, `y [B, n]`."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, points, DIMENSIONS)).astype(np.float32)
    return x, np.einsum("bnd,bd->bn", x, rng.normal(size=(count, DIMENSIONS))).astype(np.float32)


def as_episodes(x: np.ndarray, y: np.ndarray) -> Episode:
    """All points but the last are the support."""
    part = lambda rows: Examples(x[:, rows], y[:, rows, None], np.ones(y[:, rows].shape, np.float32))
    return jax.tree.map(jnp.asarray, Episode(part(slice(-1)), part(slice(-1, None))))


def causal(size: dict[str, int]) -> Learner:
    """The learner of a size, with positions for the prompts of this benchmark."""
    spec = TaskSpec("regress", (DIMENSIONS,), "float32", 1)
    return make_learner("causal", spec, max_points=POINTS, **size)


def training_step(size: dict[str, int], rounds: int, peak: float) -> dict[str, Any]:
    """Ours against PyTorch, from the same weights on the same prompts."""
    import torch

    from benchmarks import functions_peers as peers

    torch.set_num_threads(_cores())
    x, y = make_prompts(BATCH, POINTS)
    learner, episodes = causal(size), as_episodes(x, y)
    params = initial(learner).params
    make = functools.partial(peers.causal_of, params, size["heads"])
    grads = jax.jit(learner.meta_grad)(initial(learner), episodes, jax.random.key(1), 0)[0]
    apart = distance(peers.names(grads), peers.gradient(make(), x, y[..., None]))
    if not apart <= EQUAL["gradient"]:
        raise SystemExit(f"PyTorch's gradient is {apart:g} away from ours: not the same computation.")
    ours = Ours(learner, optax.adam(RATE), episodes)
    steps: dict[str, Callable] = {
        f"torch_{name}": peers.training_step(make(), x, y[..., None], RATE, compiled=name == "compiled")
        for name in ("eager", "compiled")
        if name == "eager" or shutil.which("g++")
    }
    seconds = alternate({"ours": ours} | steps, rounds)
    result: dict[str, Any] = {
        "step_compile_s": round(ours.compile_seconds, 2),
        "step_gradient_distance": float(f"{apart:.2g}"),
        "step_parameters": sum(a.size for a in jax.tree.leaves(params)),
    }
    if peak:
        flops = ours.program.cost_analysis()["flops"]
        result["step_share_of_peak"] = round(flops / median(seconds["ours"]) / (peak * 1e12), 3)
    return result | summary("step", seconds)


def lasso(prompts: int, sample: int, rounds: int) -> dict[str, Any]:
    """Coefficients of every prefix of every prompt, ours against a loop over scikit-learn on a sample."""
    from benchmarks.functions_peers import lasso_loop

    x, y = make_prompts(prompts, POINTS)
    start = time.perf_counter()
    program = jax.jit(prefix_weights).lower(x, y).compile()
    compile_seconds = time.perf_counter() - start
    run = lambda: jax.block_until_ready(program(x, y))
    ours = np.asarray(run())[:sample]
    some = x[:sample].astype(np.float64), y[:sample].astype(np.float64)
    reached = objectives(*some, ours)
    theirs = {t: lasso_loop(*some, ALPHA, t) for t in TOLERANCES}
    excess = {t: objectives(*some, found) / reached - 1 for t, found in theirs.items()}  # [sample, 40]
    equal = next((t for t, value in excess.items() if value.max() <= EQUAL["lasso"]), None)
    if equal is None or min(value.min() for value in excess.values()) < -EQUAL["lasso"]:
        worst = {t: (value.min(), value.max()) for t, value in excess.items()}
        raise SystemExit(f"scikit-learn's objective is {worst} of ours above ours, by tolerance: not equal.")
    same = np.abs(theirs[equal] - ours).max(axis=-1) <= EQUAL["lasso"]
    work = {"ours": run, "sklearn": lambda: lasso_loop(*some, ALPHA, equal)}
    if equal != TOLERANCES[0]:
        work["sklearn_default"] = lambda: lasso_loop(*some, ALPHA, TOLERANCES[0])
    seconds = alternate(work, rounds)
    scaled = {
        who: [t * (1 if who == "ours" else prompts / sample) for t in values]
        for who, values in seconds.items()
    }
    return compared("lasso", median(scaled["sklearn"]), median(scaled["ours"]), TARGETS["lasso"]) | {
        "lasso_prompts": prompts,
        "lasso_sample": sample,
        "lasso_tolerance": equal,
        "lasso_excess": {f"{t:g}": float(f"{value.max():.2g}") for t, value in excess.items()},
        "lasso_same_coefficients": round(float(same.mean()), 4),
        "lasso_compile_s": round(compile_seconds, 2),
        "lasso_ms": {who: round(1e3 * median(values), 1) for who, values in scaled.items()},
        "lasso_raw_seconds": {who: [round(t, 4) for t in values] for who, values in seconds.items()},
    }


def objectives(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What the Lasso minimises, for 1 and more examples: `[B, n, d]`, `[B, n]`, `[B, n, d]` -> `[B, n - 1]`."""
    residual = y[:, None] - np.einsum("bnd,bkd->bkn", x, weights.astype(np.float64))
    examples = np.arange(y.shape[1])
    squares = np.einsum("bkn,kn->bk", residual**2, np.tri(len(examples), k=-1))
    return (squares / 2 / np.maximum(examples, 1) + ALPHA * np.abs(weights).sum(-1))[:, 1:]


def prefix_weights(x, y):
    """`[B, n, d]`, `[B, n]` -> the Lasso of the first 0 .. n - 1 examples of every prompt, `[B, n, d]`.

    One length after another, as in a curve over shots: problems of one length take about equally many events.
    """
    chunks = jax.tree.map(lambda a: a.reshape(-1, min(CHUNK, len(a)), *a.shape[1:]), (x, y))

    def prefix(k):
        def one(x, y):
            seen = (jnp.arange(len(y)) < k).astype(x.dtype)
            return lasso_weights(x * seen[:, None], y * seen, ALPHA * jnp.maximum(k, 1), k)

        return jax.lax.map(lambda chunk: jax.vmap(one)(*chunk), chunks)

    found = jax.lax.map(prefix, jnp.arange(y.shape[1]).astype(x.dtype))  # [n, chunks, CHUNK, d]
    return jnp.moveaxis(found.reshape(y.shape[1], *x.shape[::2]), 0, 1)


def replicas(size: dict[str, int], rounds: int) -> dict[str, Any]:
    """Seven training steps side by side against seven one behind the other, on the same prompts."""
    learner, optimizer = causal(size), optax.adam(RATE)
    episodes = as_episodes(*make_prompts(BATCH, POINTS))
    step = update_step(learner, optimizer, lambda consts, batch, key: (batch, None))
    arguments = ((), episodes)

    def start(key):
        meta = learner.init(key)
        return meta, optimizer.init(meta.params)

    keys = jax.random.split(jax.random.key(0), REPLICAS)
    apart = [jax.jit(start)(key) for key in keys]
    stack = jax.jit(jax.vmap(start))(keys)
    one = jax.jit(step)
    many = jax.jit(jax.vmap(step, in_axes=(0, 0, None, None, 0, None)))
    work = {
        "stacked": lambda: jax.block_until_ready(many(*stack, *arguments, keys, jnp.int32(0))),
        "apart": lambda: [
            jax.block_until_ready(one(*state, *arguments, key, jnp.int32(0)))
            for state, key in zip(apart, keys, strict=True)
        ],
    }
    losses = work["stacked"]()[2]["loss"], [values["loss"] for _, _, values in work["apart"]()]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    seconds = alternate(work, rounds)
    medians = {who: median(values) for who, values in seconds.items()}
    return compared("replicas", medians["apart"], medians["stacked"], TARGETS["replicas"]) | {
        "replicas_ms": {who: round(1e3 * value, 1) for who, value in medians.items()},
        "replicas_raw_seconds": {who: [round(t, 4) for t in values] for who, values in seconds.items()},
    }


def summary(name: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The ratio of the fastest peer to ours, the medians and the rounds."""
    medians = {who: median(values) for who, values in seconds.items()}
    peer = min(value for who, value in medians.items() if who != "ours")
    return compared(name, peer, medians["ours"], TARGETS[name]) | {
        f"{name}_ms": {who: round(1e3 * value, 1) for who, value in medians.items()},
        f"{name}_raw_seconds": {who: [round(t, 4) for t in values] for who, values in seconds.items()},
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Measures and prints; the last line is JSON."""
    parser = options_of(__doc__, rounds=5, quick="the small model, 128 prompts, three rounds")
    parser.add_argument("--only", choices=("step", "lasso", "replicas"), help="one of the comparisons")
    parser.add_argument("--peak", type=float, default=0.0, help="TFLOP/s of the accelerator")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "step": lambda: training_step(SMALL if options.quick else STANDARD, rounds, options.peak),
        "lasso": lambda: lasso(128 if options.quick else PROMPTS, 4 if options.quick else 16, rounds),
        "replicas": lambda: replicas(TINY, rounds),
    }
    figures: dict[str, Any] = command_of("functions")
    for name, part in parts.items():
        if options.only in (None, name):
            figures |= part()
    tell(figures, as_json=options.json)


if __name__ == "__main__":
    main()
