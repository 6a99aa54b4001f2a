# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of whole MAML, FOMAML and Reptile steps, against PyTorch.

    python -m benchmarks.maml --json             all of it
    python -m benchmarks.maml --json --quick     fewer rounds, the comparisons alone

MAML and FOMAML: conv-4 with 64 filters, batch norm over the current batch and max pooling, 28 x 28 images, 5-way
1-shot, 5 queries a class, 5 inner steps, 4 tasks; the step is the meta-gradient and Adam's update. Reptile: the
same network with strided convolutions, 5-way 10-shot, 5 inner steps on minibatches of 10, 5 tasks; the step is the
pseudo-gradient and the move along it. All in float32. MAML and FOMAML take one task at a time, which on these
CPUs is faster and takes a quarter of the memory; among the methods, one line is of the whole batch side by side.

The peers (`maml_peers`) are PyTorch by `torch.autograd.grad` in a loop over tasks, and by `torch.func` under
`vmap`, with as many threads as ours has cores. Before timing, from the same weights and tasks, their (pseudo-)
gradients are compared with ours, in 64 bits, where one of them has to agree, and in 32 bits. The ratios are against
the faster peer, equal or not. Compile time is apart.

Memory is the size of XLA's temporaries of a compiled meta-gradient: forward over reverse (`order="second"`) against
reverse over reverse (`order="second_reverse"`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import alternate, command_of, compared, median, options_of, tell
from metaicl.episode import Episode, Examples, TaskSpec
from metaicl.learners import Learner, Meta, make_learner
from metaicl.learners.inner import cycling_rows
from metaicl.train import update_step

SPEC = TaskSpec("classify", (28, 28, 1), "float32", 5)
TASKS, STEPS, RATE, OUTER_RATE = 4, 5, 0.01, 1e-3
REPTILE_TASKS, REPTILE_BATCH, REPTILE_RATE = 5, 10, 0.01
TARGETS = {"second_order": 2.0, "fomaml": 1.0, "reptile": 1.0}
TARGET_TEMPORARIES = 2.0
TOLERANCE = 1e-8  # of the relative distance of two meta-gradients in 64 bits
ONE = {"tasks_at_once": 1}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "maml": ("maml", ONE),
    "maml, all tasks at once": ("maml", {}),
    "fomaml": ("maml", ONE | {"order": "first"}),
    "anil": ("maml", ONE | {"adapted": "head"}),
    "boil": ("maml", ONE | {"adapted": "body"}),
    "meta_sgd": ("maml", ONE | {"rates": "parameter"}),
    "maml++": ("maml", ONE | {"rates": "layer", "multi_step_until": 1000}),
    "implicit_maml": ("implicit_maml", {}),
    "reptile": ("reptile", {"inner_batch": None, "moments": "fresh"}),
}


def make_tasks(tasks: int, shots: int, queries: int) -> Episode:
    """Random images with the labels of 5-way episodes."""
    rng = np.random.default_rng(0)

    def examples(each):
        n = SPEC.num_outputs * each
        x = rng.normal(size=(tasks, n, *SPEC.x_shape)).astype(np.float32)
        y = np.tile(np.repeat(np.arange(SPEC.num_outputs, dtype=np.int32), each), (tasks, 1))
        return Examples(jnp.asarray(x), jnp.asarray(y), jnp.ones((tasks, n)))

    return Episode(examples(shots), examples(queries))


def conv4(kind: str = "maml", downsample: str = "max_pool", **settings) -> Learner:
    """A learner on the network of this benchmark."""
    network = {"norm": "batch", "pool": "flatten", "downsample": downsample}
    settings = {"inner_steps": STEPS, "inner_lr": RATE} | settings
    return make_learner(kind, SPEC, encoder="conv", encoder_settings=network, **settings)


class Ours:
    """A compiled whole step that moves its own weights every time it is called."""

    def __init__(self, learner: Learner, optimizer: optax.GradientTransformation, tasks: Episode):
        """Compiles; `compile_seconds` and `temporary_bytes` tell what that gave."""
        self.tasks, self.key = tasks, jax.random.key(1)
        self.meta = initial(learner)
        self.opt_state = optimizer.init(self.meta.params)
        step = jax.jit(
            update_step(learner, optimizer, lambda consts, batch, key: (batch, None)), donate_argnums=(0, 1)
        )
        traced = step.trace(*self._arguments())
        start = time.perf_counter()
        self.program = traced.lower().compile()
        self.compile_seconds = time.perf_counter() - start
        self.temporary_bytes = self.program.memory_analysis().temp_size_in_bytes

    def _arguments(self):
        return self.meta, self.opt_state, (), self.tasks, self.key, jnp.int32(0)

    def __call__(self):
        """One step, to its end."""
        self.meta, self.opt_state, values = jax.block_until_ready(self.program(*self._arguments()))
        return values


def initial(learner: Learner) -> Meta:
    """The weights that all of one comparison start from."""
    return jax.jit(learner.init)(jax.random.key(0))


def distance(ours: Any, theirs: Any) -> float:
    """Norm of the difference of two gradients over the norm of ours."""
    norm = lambda tree: float(
        np.sqrt(sum(np.sum(np.square(a, dtype=np.float64)) for a in jax.tree.leaves(tree)))
    )
    ours = jax.tree.map(np.asarray, ours)
    return norm(jax.tree.map(np.subtract, ours, theirs)) / norm(ours)


def checked(
    build: Callable[[str], Learner], tasks: Episode, peers: dict[str, Callable], side: int, draw=None
):
    """The distance of every peer's gradient from ours, in 64 and in 32 bits: `{bits: {peer: distance}}`.

    In 32 bits an entry of a maximum or of a ReLU may tip over, so it is in 64 bits that they have to agree.

    Raises:
      SystemExit: if no peer is the same computation in 64 bits.
    """
    import torch

    from benchmarks import maml_peers

    stride, found = _stride(side), {}
    start = initial(build("float32"))
    for bits in ("64", "32"):
        torch.set_default_dtype(getattr(torch, f"float{bits}"))  # of what the peers make themselves
        with jax.enable_x64(bits == "64"):
            meta, batch = (_cast(tree, f"float{bits}") for tree in (start, tasks))
            ours = jax.jit(build(f"float{bits}").meta_grad)(meta, batch, jax.random.key(1), 0)[0]
            weights = {
                n: w.requires_grad_() for n, w in maml_peers.to_torch(meta.params, side, stride).items()
            }
            theirs = maml_peers.tasks_to_torch(batch, stride, None if draw is None else draw(batch))
            found[bits] = {
                name: float(f"{distance(ours, maml_peers.to_jax(g(weights, theirs), side, stride)):.2g}")
                for name, g in peers.items()
            }
    if not min(found["64"].values()) <= TOLERANCE:
        raise SystemExit(f"The peers are {found['64']} away from our gradient: not the same computation.")
    return found


def _cast(tree, dtype):
    floating = lambda a: jnp.issubdtype(a.dtype, jnp.floating)
    return jax.tree.map(lambda a: a.astype(dtype) if floating(a) else a, tree)


def compare(
    build: Callable[[str], Learner],
    tasks: Episode,
    optimizers,
    peers: dict[str, Callable],
    side: int,
    rounds: int,
    draw=None,
) -> dict[str, Any]:
    """Checks, then times, one method: ours and each peer."""
    from benchmarks import maml_peers

    stride = _stride(side)
    ours_optimizer, peers_optimizer = optimizers
    agreement = checked(build, tasks, peers, side, draw)
    learner = build("float32")
    ours = Ours(learner, ours_optimizer, tasks)
    weights = maml_peers.to_torch(initial(learner).params, side, stride)
    theirs = maml_peers.tasks_to_torch(tasks, stride, None if draw is None else draw(tasks))
    steps = {n: maml_peers.outer_step(g, weights, theirs, peers_optimizer) for n, g in peers.items()}
    seconds = alternate({"ours": ours} | steps, rounds)
    return {
        "seconds": seconds,
        "compile_s": round(ours.compile_seconds, 2),
        "gradient_distance": agreement,
    }


def _stride(side: int) -> int:
    return 1 if side == 1 else 2  # max pooling leaves one position of 28 x 28, strides leave four


def comparisons(rounds: int) -> dict[str, dict[str, Any]]:
    """MAML, FOMAML and Reptile against their peers."""
    import torch

    from benchmarks import maml_peers as peers

    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    tasks, ways = make_tasks(TASKS, 1, 5), SPEC.num_outputs
    adam = optax.adam(OUTER_RATE), lambda leaves: torch.optim.Adam(leaves, OUTER_RATE)
    module, found = peers.Conv4(1, peers.FILTERS, ways), {}
    for name, order in (("second_order", "second"), ("fomaml", "first")):
        second = order == "second"
        work = {
            "torch_autograd": peers.autograd_maml(lambda w, x: peers.forward(w, x, 1), STEPS, RATE, second),
            "torch_func": peers.func_maml(peers.called(module), STEPS, RATE, second),
        }
        build = lambda dtype, order=order: conv4(order=order, tasks_at_once=1, dtype=dtype)
        found[name] = compare(build, tasks, adam, work, 1, rounds)
    settings = {"inner_batch": REPTILE_BATCH, "inner_optimizer": "sgd", "inner_lr": REPTILE_RATE}
    build = lambda dtype: conv4("reptile", "stride", moments="fresh", dtype=dtype, **settings)
    side, tasks = 2, make_tasks(REPTILE_TASKS, 10, 1)
    work = {
        "torch_autograd": peers.autograd_reptile(REPTILE_RATE),
        "torch_func": peers.func_reptile(REPTILE_RATE, side * side * peers.FILTERS, ways),
    }
    sgd = optax.sgd(1.0), lambda leaves: torch.optim.SGD(leaves, 1.0)
    found["reptile"] = compare(build, tasks, sgd, work, side, rounds, reptile_rows)
    return found


def reptile_rows(tasks: Episode) -> jax.Array:
    """The minibatches that ours draws with the key of `checked`: `int32 [B, steps, 10]`."""
    keys = jax.random.split(jax.random.key(1), len(tasks.support.mask))
    draw = lambda key, mask: cycling_rows(jax.random.split(key)[0], mask, REPTILE_BATCH, STEPS)
    return jax.vmap(draw)(keys, tasks.support.mask)


def temporaries(**settings) -> int:
    """Bytes of XLA's temporaries for one meta-gradient."""
    learner = conv4(**settings)
    arguments = jax.eval_shape(lambda: (initial(learner), make_tasks(TASKS, 1, 5), jax.random.key(1)))
    program = jax.jit(learner.meta_grad).lower(*arguments, 0).compile()
    return program.memory_analysis().temp_size_in_bytes


def memory() -> dict[str, Any]:
    """Temporaries of both second orders, at several numbers of inner steps."""
    weights = sum(4 * leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: initial(conv4()))))
    sizes: dict[str, dict[str, float]] = {}
    growth = {}
    for order in ("second", "second_reverse"):
        found = {steps: temporaries(order=order, inner_steps=steps) for steps in (1, 5, 10)}
        sizes[order] = {str(steps): round(size / 1e6, 2) for steps, size in found.items()}
        growth[order] = round((found[10] - found[5]) / 5 / (TASKS * weights), 2)
    found = {order: sizes[order][str(STEPS)] for order in sizes}
    return compared("temporaries", found["second_reverse"], found["second"], TARGET_TEMPORARIES) | {
        "temporaries_mb": sizes,
        "temporaries_one_task_at_once_mb": round(temporaries(tasks_at_once=1) / 1e6, 2),
        "weights_mb": round(weights / 1e6, 3),
        # 1 would be: every inner step adds one set of weights per task to what is kept.
        "growth_per_step_in_weights_of_all_tasks": growth,
    }


def methods(rounds: int) -> dict[str, dict[str, float]]:
    """Time of a whole step and temporaries, of every method, on the tasks of the MAML comparison."""
    tasks, optimizer = make_tasks(TASKS, 1, 5), optax.adam(OUTER_RATE)
    steps = {
        name: Ours(conv4(kind, **settings), optimizer, tasks) for name, (kind, settings) in METHODS.items()
    }
    seconds = alternate(steps, rounds)
    return {
        name: {
            "step_ms": round(1e3 * median(seconds[name]), 1),
            "temporaries_mb": round(step.temporary_bytes / 1e6, 1),
            "compile_s": round(step.compile_seconds, 1),
        }
        for name, step in steps.items()
    }


def main() -> None:
    """Measures and prints; the last line is JSON."""
    parser = options_of(__doc__, rounds=7, quick="three rounds, the comparisons alone")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    figures: dict[str, Any] = command_of("maml")
    details = comparisons(rounds)
    for name, found in details.items():
        medians = {who: median(seconds) for who, seconds in found["seconds"].items()}
        peer = min(seconds for who, seconds in medians.items() if who != "ours")
        figures |= compared(name, peer, medians["ours"], TARGETS[name])
        figures[f"{name}_ms"] = {who: round(1e3 * seconds, 1) for who, seconds in medians.items()}
        figures[f"{name}_compile_s"] = found["compile_s"]
        figures[f"{name}_gradient_distance"] = found["gradient_distance"]
    if not options.quick:
        figures |= memory() | {"methods": methods(rounds)}
    figures["raw_seconds"] = {
        name: {who: [round(t, 4) for t in seconds] for who, seconds in found["seconds"].items()}
        for name, found in details.items()
    }
    tell(figures, as_json=options.json)


if __name__ == "__main__":
    main()
