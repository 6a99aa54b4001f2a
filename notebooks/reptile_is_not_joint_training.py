# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reptile is not joint training
#
# Reptile trains on a task for k steps and then moves its weights a little towards where they went. That looks
# like joint training, ordinary gradient descent on the average loss of all tasks, and for k = 1 it is exactly
# that. People ask what more steps change. This page shows it with two numbers, then with a network.
#
# The source is Nichol, Achiam and Schulman, *On First-Order Meta-Learning Algorithms* (2018), sections 5.1 and 5.2.

# %%
# Installs the package where it is missing, as on Colab. In a clone of the repository nothing is downloaded.
import importlib.util
import os
import pathlib
import subprocess
import sys

REPOSITORY = "https://github.com/OWNER/metaicl"  # the address of the repository, or of your fork

folders = [pathlib.Path.cwd(), *pathlib.Path.cwd().parents]
root = next((folder for folder in folders if (folder / "configs" / "loo.py").exists()), None)
if root is None:
    root = pathlib.Path("metaicl").absolute()
    subprocess.run(["git", "clone", "--depth=1", REPOSITORY, str(root)], check=True)
if importlib.util.find_spec("metaicl") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-e", str(root)], check=True)
sys.path.insert(0, str(root))

FAST = os.environ.get("METAICL_NOTEBOOK_FAST") == "1"  # a rehearsal whose network learns little

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from metaicl.data.functions import sinusoids
from metaicl.episode import Examples, TaskSpec
from metaicl.evaluate import evaluate
from metaicl.learners import make_learner
from metaicl.learners.inner import inner_loop
from metaicl.train import update_step

# %% [markdown]
# ## One weight, two tasks
#
# Task A wants the weight w to be 0 and does not insist: its loss is w²/2. Task B wants it to be 1 and is ten times as
# steep: its loss is 10 (w - 1)²/2. The average loss is smallest at w = 10/11 = 0.909: joint training gives in
# to the steeper task.
#
# k steps of gradient descent with rate a on a loss of curvature h shrink the distance to its minimum by
# (1 - a h)^k. Reptile stands still where the moves of both tasks cancel,
#
#     (1 - (1 - a)^k) (w - 0) + (1 - (1 - 10 a)^k) (w - 1) = 0.
#
# With one step that is the minimum of the average loss. With many steps every task is solved, both brackets are 1,
# and w = 0.5: the point from which both solutions are equally near. Below, the package's own inner loop runs against
# this formula.

# %%
MINIMA, CURVATURES, RATE = np.array([0.0, 1.0]), np.array([1.0, 10.0]), 0.05


def loss(params, task, key, shown):
    return task.x[0, 1] * (params["w"] - task.x[0, 0]) ** 2 / 2


tasks = Examples(
    x=jnp.asarray(np.stack([MINIMA, CURVATURES], axis=-1)[:, None], jnp.float32),
    y=jnp.zeros((2, 1), jnp.int32),
    mask=jnp.ones((2, 1)),
)


def standstill(k):
    """Where Reptile's weight comes to rest: 3,000 outer steps, each a tenth of the way."""
    inner = inner_loop(steps=k, learning_rate=RATE, order="first")
    adapted = lambda w, task: inner.run(loss, {"w": w}, task, jax.random.key(0)).params["w"]
    outer = lambda _, w: w + 0.1 * (jnp.mean(jax.vmap(adapted, (None, 0))(w, tasks)) - w)
    return float(jax.jit(lambda w: jax.lax.fori_loop(0, 3000, outer, w))(jnp.float32(0.0)))


print(" k   measured  formula")
for k in (1, 2, 4, 8, 16, 32, 64, 128):
    solved = 1 - (1 - RATE * CURVATURES) ** k
    formula = np.sum(solved * MINIMA) / np.sum(solved)
    measured = standstill(k)
    print(f"{k:3d}   {measured:.5f}   {formula:.5f}")
    assert abs(measured - formula) < 1e-4

# %% [markdown]
# ## A network, many tasks
#
# Sine curves of any amplitude and phase. Their average is 0 everywhere, so joint training learns to answer 0, from
# where no curve is quickly reached. First the directions: Reptile's move from the same weights on the same 100
# tasks, beside the gradient of joint training. One step gives the same direction; with more steps the angle
# between them grows.

# %%
spec = TaskSpec("regress", (1,), "float32", 1)
network = dict(encoder="mlp", encoder_settings=dict(hidden=(64, 64), activation="tanh"))
curves = dict(queries=50, grid=50, phase=(0.0, 2 * np.pi))
source = sinusoids(seed=0, points=50, **curves)
episodes, _ = source.build(source.consts, {"index": np.arange(100)}, jax.random.key(0))


def reptile(k):
    settings = dict(moments="fresh", inner_optimizer="sgd", inner_lr=0.02, inner_batch=None)
    return make_learner("reptile", spec, inner_steps=k, **settings, **network)


def direction(learner, meta):
    move = ravel_pytree(jax.jit(learner.meta_grad)(meta, episodes, jax.random.key(0), 0)[0])[0]
    return np.asarray(move, np.float64) / np.linalg.norm(np.asarray(move, np.float64))


meta = reptile(1).init(jax.random.key(0))
joint = direction(make_learner("maml", spec, inner_steps=0, **network), meta)
print(" k   cosine with joint training")
for k in (1, 2, 5, 20, 100):
    cosine = float(direction(reptile(k), meta) @ joint)
    print(f"{k:3d}   {cosine:.7f}")
    assert k > 1 or cosine > 1 - 1e-6

# %% [markdown]
# Then what comes of it: both train on the same tasks with the same number of outer steps. The rate of the outer step is
# divided by k, so that the larger sum of k gradients is not what makes the difference.

# %%
STEPS = 300 if FAST else 10_000


def trained(learner, rate):
    optimizer = optax.sgd(optax.linear_schedule(rate, 0.0, STEPS))
    step = update_step(learner, optimizer, source.build)

    @jax.jit
    def run(meta, opt_state):
        def body(i, state):
            return step(*state, source.consts, {"index": i * 5 + jnp.arange(5)}, jax.random.key(0), i)[:2]

        return jax.lax.fori_loop(0, STEPS, body, (meta, opt_state))[0]

    start = learner.init(jax.random.key(0))
    return run(start, optimizer.init(start.params))


tests = sinusoids(seed=1, points=10, **curves)
steps_at_test = (0, 1, 2, 4, 8, 16, 32)
errors = {}
for k in (1, 5, 20):
    learned = trained(reptile(k), rate=2 / k)
    errors[k] = [
        evaluate(spec, reptile(n), learned, tests, range(300), batch=100)["values"]["loss"].mean()
        for n in steps_at_test
    ]
    print(f"k = {k:2d}: mean squared error after {steps_at_test} steps:", np.round(errors[k], 2))

# %%
for k, values in errors.items():
    name = "k = 1, joint training" if k == 1 else f"Reptile, k = {k}"
    plt.plot(range(len(steps_at_test)), values, marker="o", label=name)
plt.xticks(range(len(steps_at_test)), steps_at_test)
plt.xlabel("gradient steps on 10 points of a new curve")
plt.ylabel("mean squared error")
plt.ylim(bottom=0)
plt.legend()
plt.show()

# %% [markdown]
# ## Why
#
# To first order in the inner rate, k steps move along k times the gradient of joint training, plus a term that
# grows with k (k - 1)/2: the direction in which the inner product of the gradients of two minibatches of the
# *same* task rises. `configs/taylor.py` measures both coefficients, `configs/gradient_agreement.py` measures the
# inner product itself, and `configs/solution_manifolds.py` how near the weights come to the solutions of all tasks.
