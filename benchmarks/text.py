# SPDX-License-Identifier: Apache-2.0
"""Memory and speed of MAML on BERT: forward over reverse against naive double autograd, whole steps against PyTorch.

    python -m benchmarks.text --json             all of it
    python -m benchmarks.text --json --quick     two of BERT's layers, three rounds, no compiled peer

Memory: the size of XLA's temporaries of a meta-gradient, compiled for the shapes and never run. BERT-base (12 layers
of 768), 5 inner steps of SGD over all weights, 25 support and 25 query sentences of 64 tokens, one task, float32.
`second` is the default, forward over reverse; it is compared with `naive`, reverse over reverse. `_remat` recomputes
each layer in the backward pass.

Speed: the shape of MiniLM (6 layers of 384), 5-way 1-shot, 5 queries a class, sentences of 6 to 16 tokens, 5 inner
steps over all weights, 2 tasks; the step is the meta-gradient and Adam's update. The peers (`text_peers`) are PyTorch
by `torch.autograd.grad` in a loop over tasks, with attention by hand and with PyTorch's own, by `torch.func` under
`vmap`, and the latter compiled by `torch.compile`, with as many threads as ours has cores. From the same weights and
tasks their meta-gradients have to equal ours. The ratios are against the fastest peer. Compile time is apart.
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

from benchmarks.maml import Ours, distance, initial
from benchmarks.timing import alternate, command_of, compared, median, options_of, progress, tell
from metaicl.episode import Episode, Examples, TaskSpec
from metaicl.learners import Learner, make_learner

BASE = dict(vocabulary=30522, width=768, layers=12, heads=12, hidden=3072, positions=512)
MINILM = dict(vocabulary=30522, width=384, layers=6, heads=12, hidden=1536, positions=512)
WAYS, STEPS, RATE, OUTER_RATE = 5, 5, 0.05, 1e-5
TASKS = 2
ORDERS = {"maml": "second", "fomaml": "first"}
TARGETS = {"maml": 1.0, "fomaml": 1.0}
TARGET_TEMPORARIES = 4.0
TOLERANCE = 1e-3  # of the relative distance of two meta-gradients in 32 bits
# What each line of the memory is: the order, and whether the layers are computed again in the backward pass.
MEMORY = {
    "second_remat": ("second", True),
    "second": ("second", False),
    "first_remat": ("first", True),
    "first": ("first", False),
    "naive_remat": ("second_reverse", True),
    "naive": ("second_reverse", False),
}


def make_tasks(tasks: int, shots: int, queries: int, shortest: int, longest: int) -> Episode:
    """Random sentences of `shortest` to `longest` tokens with the labels of 5-way episodes."""
    rng = np.random.default_rng(0)

    def examples(each):
        n = WAYS * each
        ids = rng.integers(1, BASE["vocabulary"], (tasks, n, longest), dtype=np.int32)
        lengths = rng.integers(shortest, longest + 1, (tasks, n, 1))
        y = np.tile(np.repeat(np.arange(WAYS, dtype=np.int32), each), (tasks, 1))
        x = np.where(np.arange(longest)[None, None, :] < lengths, ids, 0)
        return Examples(jnp.asarray(x), jnp.asarray(y), jnp.ones((tasks, n)))

    return Episode(examples(shots), examples(queries))


def on_bert(shape: dict[str, int], tokens: int, order: str, remat: bool = False, **settings) -> Learner:
    """MAML over all weights of a BERT."""
    network = {"encoder": "bert", "encoder_settings": {"shape": shape, "remat": remat}}
    spec = TaskSpec("classify", (tokens,), "int32", WAYS)
    return make_learner("maml", spec, inner_steps=STEPS, inner_lr=RATE, order=order, **network, **settings)


def temporaries(shape: dict[str, int], order: str, remat: bool) -> int:
    """Bytes of XLA's temporaries for one meta-gradient, which is compiled and never run."""
    learner = on_bert(shape, 64, order, remat)
    arguments = jax.eval_shape(lambda: (initial(learner), make_tasks(1, 5, 5, 64, 64), jax.random.key(1)))
    program = jax.jit(learner.meta_grad).lower(*arguments, 0).compile()
    return program.memory_analysis().temp_size_in_bytes


def memory(shape: dict[str, int]) -> dict[str, Any]:
    """Temporaries of every line of `MEMORY`; a line that cannot be compiled gives its reason."""
    sizes: dict[str, float | str] = {}
    seconds = {}
    for name, (order, remat) in MEMORY.items():
        start = time.perf_counter()
        try:
            sizes[name] = round(temporaries(shape, order, remat) / 2**30, 3)
        except (RuntimeError, MemoryError) as error:  # XLA's own errors are RuntimeErrors
            sizes[name] = f"not compiled: {error}".splitlines()[0]
        seconds[name] = round(time.perf_counter() - start, 1)
        progress(f"temporaries of {name}: {sizes[name]} GiB, compiled in {seconds[name]} s")
    weights = jax.eval_shape(lambda: initial(on_bert(shape, 64, "first")))
    found = {
        "temporaries_gib": sizes,
        "temporaries_compile_s": seconds,
        "weights_gib": round(sum(4 * leaf.size for leaf in jax.tree.leaves(weights)) / 2**30, 3),
        "memory_shape": shape,
    }
    naive, ours = sizes["naive"], sizes["second"]
    if isinstance(naive, str) or isinstance(ours, str):
        return found
    return compared("temporaries", naive, ours, TARGET_TEMPORARIES) | found


def peers(order: str, compiled: bool) -> dict[str, Callable]:
    """The ways to take the meta-gradient in PyTorch, by name."""
    import torch

    from benchmarks.maml_peers import autograd_maml, func_maml
    from benchmarks.text_peers import classifier
    from metaicl.models.bert import BertShape

    second = order == "second"
    settings = (STEPS, RATE, second)
    by_hand, fused = (classifier(BertShape(**MINILM), how, second) for how in ("by_hand", "fused"))
    found = {
        "torch_autograd": autograd_maml(by_hand, *settings),
        "torch_autograd_fused": autograd_maml(fused, *settings),
        "torch_func": func_maml(by_hand, *settings),
    }
    if compiled:
        found["torch_func_compiled"] = torch.compile(func_maml(by_hand, *settings))
    return found


def checked(learner: Learner, tasks: Episode, work: dict[str, Callable]) -> dict[str, float | str]:
    """The distance of every peer's meta-gradient from ours, or why it is not compared.

    Raises:
      SystemExit: if a peer computes something else; one that only its compiler changed is left out.
    """
    from benchmarks.text_peers import tasks_to_torch, to_jax, to_torch

    start = initial(learner)
    ours = jax.jit(learner.meta_grad)(start, tasks, jax.random.key(1), 0)[0]
    weights = {name: w.requires_grad_() for name, w in to_torch(start.params).items()}
    theirs, found = tasks_to_torch(tasks), {}
    for name, gradient in work.items():
        try:
            far = distance(ours, to_jax(gradient(weights, theirs)))
            same = far <= TOLERANCE or not name.endswith("compiled")
            found[name] = float(f"{far:.2g}") if same else f"compiled to something else: distance {far:.2g}"
        except Exception as error:  # of the compiler, which has many
            if not name.endswith("compiled"):
                raise
            found[name] = f"not compiled: {type(error).__name__}: {error}".splitlines()[0]
        progress(f"  {name}: distance of the meta-gradient {found[name]}")
    if wrong := [name for name, far in found.items() if not isinstance(far, str) and not far <= TOLERANCE]:
        raise SystemExit(f"{', '.join(wrong)}: not the same computation as ours; distances {found}.")
    return found


def compare(order: str, rounds: int, compiled: bool) -> dict[str, Any]:
    """Checks, then times, one order: ours and each peer."""
    import torch

    from benchmarks.maml_peers import outer_step
    from benchmarks.text_peers import tasks_to_torch, to_torch

    tasks = make_tasks(TASKS, 1, 5, 6, 16)
    learner = on_bert(MINILM, 16, order, tasks_at_once=1)
    work = peers(order, compiled)
    agreement = checked(learner, tasks, work)
    ours = Ours(learner, optax.adam(OUTER_RATE), tasks)
    weights, theirs = to_torch(initial(learner).params), tasks_to_torch(tasks)
    adam = lambda leaves: torch.optim.Adam(leaves, OUTER_RATE)
    steps = {
        name: outer_step(gradient, weights, theirs, adam)
        for name, gradient in work.items()
        if not isinstance(agreement[name], str)
    }
    seconds = alternate({"ours": ours} | steps, rounds)
    return {
        "seconds": seconds,
        "compile_s": round(ours.compile_seconds, 2),
        "gradient_distance": agreement,
    }


def speed(rounds: int, compiled: bool) -> dict[str, Any]:
    """Whole steps of MAML and FOMAML against their peers."""
    import torch

    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    figures: dict[str, Any] = {}
    raw = {}
    for name, order in ORDERS.items():
        progress(f"{name}: comparing and timing")
        found = compare(order, rounds, compiled)
        medians = {who: median(seconds) for who, seconds in found["seconds"].items()}
        fastest = min(seconds for who, seconds in medians.items() if who != "ours")
        figures |= compared(name, fastest, medians["ours"], TARGETS[name])
        figures[f"{name}_ms"] = {who: round(1e3 * seconds, 1) for who, seconds in medians.items()}
        figures[f"{name}_compile_s"] = found["compile_s"]
        figures[f"{name}_gradient_distance"] = found["gradient_distance"]
        raw[name] = {who: [round(t, 4) for t in seconds] for who, seconds in found["seconds"].items()}
        progress(f"  medians in ms: {figures[f'{name}_ms']}")
    return figures | {"raw_seconds": raw}


def main() -> None:
    """Measures and prints; the last line is JSON."""
    parser = options_of(__doc__, rounds=7, quick="two layers, three rounds, no compiled peer")
    parser.add_argument("--only", choices=("memory", "speed"), help="one of the comparisons")
    options = parser.parse_args()
    figures: dict[str, Any] = command_of("text")
    if options.only in (None, "memory"):
        figures |= memory(BASE | {"layers": 2} if options.quick else BASE)
    if options.only in (None, "speed"):
        figures |= speed(3 if options.quick else options.rounds, not options.quick)
    tell(figures, as_json=options.json)


if __name__ == "__main__":
    main()
