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
# # MAML on BERT, and six ways to get it wrong
#
# MAML (Finn et al. 2017) looks for weights from which *one or a few gradient steps* on a handful of labelled examples
# give a good classifier. For sentences one takes BERT for the network and says: ten domains, 1,000 training and 200
# test sentences of each, one inner step. Tutorials then show a loop of this kind:
#
# ```python
# for domain in domains:
#     fast = copy.deepcopy(model)                       # (1)
#     optimizer = Adam(fast.parameters(), lr=2e-5)      # (2)
#     loss = fast(**support[domain]).loss
#     loss.backward()
#     optimizer.step()
#     query_loss = fast(**query[domain]).loss           # (3)
#     meta_loss += query_loss
# meta_loss.backward()
# meta_optimizer.step()                                 # (4)
# # (5) one classifier head for all domains, with fixed label numbers
# # (6) the test asks for the very intents that were trained on
# ```
#
# It runs without an error, its loss is printed, and it learns nothing. This page goes through the six places, shows
# with numbers what each of them does, and then does it properly.

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

FAST = os.environ.get("METAICL_NOTEBOOK_FAST") == "1"  # a rehearsal, whose last networks learn little

# %%
import copy
import csv
import itertools
import json
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Image, display
from jax.flatten_util import ravel_pytree

from configs import text, text_domains
from metaicl import losses
from metaicl.configuration import overridden
from metaicl.data import sampler
from metaicl.data.text import make_pools, read_sentences
from metaicl.data.tokens import hashed_words
from metaicl.episode import TaskSpec
from metaicl.evaluate import evaluate
from metaicl.experiment import run_experiment
from metaicl.experiment.sentences import classifier_of_run
from metaicl.learners import Meta, make_learner
from metaicl.train import update_step

workdir = pathlib.Path(os.environ.get("METAICL_WORKDIR") or tempfile.mkdtemp(prefix="metaicl-"))
workdir.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Sentences to try things on
#
# Six made-up domains of five *intents* (what a speaker is asking about). The intent is one word of the sentence; the
# others are noise that a network has to learn to overlook.

# %%
INTENTS = {
    "bank": ("card", "account", "loan", "cheque", "savings"),
    "kitchen": ("soup", "bread", "salad", "coffee", "cake"),
    "travel": ("flight", "hotel", "passport", "train", "luggage"),
    "home": ("lamp", "radiator", "door", "oven", "curtain"),
    "office": ("meeting", "printer", "salary", "report", "holiday"),
    "garden": ("hedge", "lawn", "pond", "fence", "roses"),
}
OPENINGS = ("please", "hello,", "could you", "I want you to", "when you can,", "excuse me,")
VERBS = ("check", "ask about", "look at", "tell me about", "do something about")
TAILS = ("", "now", "today", "for my sister", "as soon as you can")

table_of_sentences = workdir / "sentences.csv"
with table_of_sentences.open("w", newline="", encoding="utf-8") as file:
    rows = csv.writer(file)
    rows.writerow(["text", "label", "domain"])
    for domain, intents in INTENTS.items():
        for intent, *words in itertools.product(intents, OPENINGS, VERBS, TAILS):
            opening, verb, tail = words
            rows.writerow([f"{opening} {verb} the {intent} {tail}".strip(), f"{domain}: {intent}", domain])

tokenizer = hashed_words(2048)
pools = make_pools(read_sentences(str(table_of_sentences), ""), tokenizer, longest=16)
store = sampler.make_store(pools)
print({pool.domain: f"{len(pool)} sentences, {len(pool.classes)} intents" for pool in pools})
print(
    tokenizer.encode(["please check the card now"])[0],
    "are the numbers of the words of 'please check the card now'",
)

# %% [markdown]
# An *episode* is one small task: a labelled *support set* to adapt to (here five sentences of each of five intents)
# and *queries* to answer afterwards. A batch of four episodes is what one meta-update sees. The network is a real
# BERT, only small: one layer, 32 numbers for each word.

# %%
WAYS, SHOTS = 5, 5
SHAPE = dict(vocabulary=2048, width=32, layers=1, heads=2, hidden=64, positions=16)
spec = TaskSpec("classify", store.item[0], "int32", WAYS)


def tasks_of(pools, **changes):
    return sampler.episodes(store, pools, seed=0, **(dict(ways=WAYS, shots=SHOTS, queries=5) | changes))


def maml(dtype="float32", dropout=0.0, **changes):
    """The learner of this page: one inner step of gradient descent on all weights."""
    encoder = dict(encoder="bert", encoder_settings=dict(shape=SHAPE, dropout=dropout))
    return make_learner("maml", spec, **(dict(inner_steps=1, inner_lr=0.01) | encoder | changes), dtype=dtype)


def batches(source, count, size=4):
    """`count` batches of `size` episodes: which rows of the store they hold, `[count, size, ...]`."""
    drawn = [source.indices(i) for i in range(count * size)]
    return {k: np.stack([d[k] for d in drawn]).reshape(count, size, *drawn[0][k].shape) for k in drawn[0]}


source = tasks_of(pools)
episodes, _ = source.build(source.consts, jax.tree.map(lambda a: a[0], batches(source, 1)), None)
meta = jax.jit(maml().init)(jax.random.key(0))
print(sum(leaf.size for leaf in jax.tree.leaves(meta.params)), "weights; support", episodes.support.x.shape)

# %% [markdown]
# ## (1) and (4): a gradient that goes nowhere
#
# MAML's loss is the queries' loss *after* the inner step, as a function of the weights *before* it. `deepcopy` makes
# new weights that know nothing of those they were copied from. So `meta_loss.backward()` stops at the copies, the
# original's `.grad` stays `None`, and an optimiser skips weights that have no gradient. Here is that loop on a
# network of a few numbers, then two repairs: handing over the gradients of the copies, which is *first-order* MAML,
# and a step that remains part of the graph (`create_graph=True` and `functional_call`), which is MAML.

# %%
if importlib.util.find_spec("torch") is None:
    print("PyTorch is not installed here, so this demonstration is skipped: pip install torch shows it.")
else:
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    start, cross_entropy = copy.deepcopy(model.state_dict()), nn.functional.cross_entropy
    domains = [[(torch.randn(12, 8), torch.randint(3, (12,))) for _ in "sq"] for _ in range(10)]
    names = [name for name, _ in model.named_parameters()]

    # As above: a copy, a step, the queries' loss.
    meta_optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    meta_loss, copies = 0.0, []
    for (x, y), (query_x, query_y) in domains:
        fast = copy.deepcopy(model)
        optimizer = torch.optim.SGD(fast.parameters(), lr=0.4)
        cross_entropy(fast(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        meta_loss = meta_loss + cross_entropy(fast(query_x), query_y)
        copies.append(fast)
    meta_loss.backward()
    meta_optimizer.step()
    for name, parameter in model.named_parameters():
        print(f"{name}.grad is {parameter.grad}")
    moved = max(
        float((parameter.detach() - start[name]).abs().max()) for name, parameter in model.named_parameters()
    )
    print(f"The meta-optimiser has moved the weights by {moved}.")

    # First order: the gradients of the copies count as those of the original.
    of_copies = [
        sum(parts) for parts in zip(*([p.grad for p in fast.parameters()] for fast in copies), strict=True)
    ]

    # Second order: the inner step is part of the graph.
    meta_loss = 0.0
    for (x, y), (query_x, query_y) in domains:
        grads = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()), create_graph=True)
        fast = {n: p - 0.4 * g for n, p, g in zip(names, model.parameters(), grads, strict=True)}
        meta_loss = meta_loss + cross_entropy(torch.func.functional_call(model, fast, (query_x,)), query_y)
    exact = torch.autograd.grad(meta_loss, list(model.parameters()))

    length = lambda parts: float(sum(part.square().sum() for part in parts) ** 0.5)
    apart = length([a - b for a, b in zip(of_copies, exact, strict=True)]) / length(exact)
    print(f"Length of the gradient: exact {length(exact):.3f}, first order {length(of_copies):.3f}.")
    print(f"The two are apart by {apart:.0%} of the exact one's length.")

# %% [markdown]
# ## The same in JAX, where nothing is copied
#
# In JAX a step makes new weights *from* the old ones, so there is no graph to cut. A learner here is four functions;
# `adapt` takes the inner step and `predict` answers the queries. `meta_grad` is the gradient of the queries' loss
# through both. `order="second"` is exact, `order="first"` takes the inner gradient for a constant.
#
# Is it right? A derivative can be checked without any calculus: move the weights a little to both sides along a
# direction and see how the loss changes, (L(w + h d) - L(w - h d)) / 2h. In 64-bit numbers that is good to many digits.
# Below is one random direction for each array of BERT's weights. The loss is made of `adapt` and `predict` alone.

# %%
STEP_SIZES = 10.0 ** (np.array([-1.0, -3, -5, -7]) if FAST else np.arange(-1.0, -8, -1))


def meta_loss(learner, params):
    def of_one(episode):
        state = learner.adapt(Meta(params), episode.support, jax.random.key(0))
        outputs = learner.predict(Meta(params), state, episode.query.x, episode.query.mask)
        return losses.mean_loss(spec, outputs, episode.query)

    return jax.vmap(of_one)(episodes).mean()


def directions_of(params):
    """One direction for each array, as long as 1: `[arrays, weights]`, and the arrays' names."""
    rng, found, names = np.random.default_rng(0), [], []
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        inside = jax.tree_util.tree_map_with_path(lambda p, a, path=path: np.full(a.shape, p == path), params)
        d = ravel_pytree(inside)[0] * rng.normal(size=ravel_pytree(params)[0].shape)
        found.append(np.asarray(d) / np.linalg.norm(d))
        names.append("/".join(part.key for part in path).removeprefix("encoder/"))
    return np.stack(found), names


def gradient_of(learner, params, key=0):
    """The meta-gradient, as one vector."""
    found = jax.jit(learner.meta_grad)(Meta(params), episodes, jax.random.key(key), 0)[0]
    return np.asarray(ravel_pytree(found)[0])


with jax.enable_x64(True):
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), meta.params)
    flat, unravel = ravel_pytree(params)
    directions, array_names = directions_of(params)
    learner = maml("float64")
    loss_at = jax.jit(lambda points: jax.lax.map(lambda w: meta_loss(learner, unravel(w)), points))
    differences = {}
    for h in STEP_SIZES:
        sides = loss_at(jnp.concatenate([flat + h * directions, flat - h * directions]))
        differences[h] = np.asarray(sides[: len(directions)] - sides[len(directions) :]) / (2 * h)
    exact, first = gradient_of(learner, params), gradient_of(maml("float64", order="first"), params)
    # What deepcopy does to the graph: the weights that adapt are not those that are differentiated.
    cut = jax.jit(jax.grad(lambda w: meta_loss(learner, unravel(jax.lax.stop_gradient(w)))))(flat)

gradients = {"second order": exact, "first order": first, "deepcopy": np.asarray(cut)}
slopes = {name: directions @ gradient for name, gradient in gradients.items()}

errors = {
    name: [np.linalg.norm(slope - d) / np.linalg.norm(d) for d in differences.values()]
    for name, slope in slopes.items()
}
print("relative error against finite differences, at their best step:")
for name, values in errors.items():
    print(f"{name:>14s}  {min(values):.1e}")

# %%
COLORS = {"finite differences": "black", "second order": "C0", "first order": "C1", "deepcopy": "C3"}
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6), layout="constrained", width_ratios=(3, 2))
best = STEP_SIZES[int(np.argmin(errors["second order"]))]
largest = np.argsort(-np.abs(differences[best]))[:12][::-1]
for number, (name, values) in enumerate([("finite differences", differences[best]), *slopes.items()]):
    left.barh(
        np.arange(len(largest)) + 0.3 - 0.2 * number, values[largest], 0.2, label=name, color=COLORS[name]
    )
left.set_yticks(range(len(largest)), [array_names[i] for i in largest], fontsize=8)
left.set_xlabel("slope of the meta-loss along one direction")
left.set_title("Twelve arrays of weights")
left.legend()
for name, values in errors.items():
    right.loglog(STEP_SIZES, values, marker="o", label=name, color=COLORS[name])
right.set_xlabel("step h of the finite differences")
right.set_ylabel("relative error")
right.set_title("Error over all arrays")
right.legend()
plt.show()

# %% [markdown]
# The exact gradient agrees until rounding takes over at the smallest steps. First order is another vector, whatever the
# step, and in this network, whose word vectors start short and whose loss is therefore strongly curved, far off: it
# leaves out how the inner step itself depends on the weights. It is a good deal cheaper and often learns about
# as well, but it should be a choice. The copy's gradient is zero: its error is 1, all of it.
#
# ## (2): an Adam that is new for every task
#
# Adam divides the gradient by a running mean of its size. In its very first step that mean *is* the gradient's own
# size, so every weight moves by the same 2e-5, up or down: what is left of the gradient is its sign. A sign does not
# change when the weights change a little, so it hands back no second-order term either. And 2e-5, a good rate for
# the thousands of steps of fine-tuning, goes nowhere in a single one. Then MAML's gradient is that of training
# on the queries without any adaptation: joint training.

# %%
one = jax.tree.map(lambda a: a[0], episodes).support
plain = maml("float64", inner_steps=0)  # the network as it is
RATES = {"Adam, new, 2e-5": optax.adam(2e-5), "gradient descent, 0.01": optax.sgd(0.01)}


@jax.jit
def steps_on_support(params):
    """The support's loss; for each optimiser how far each weight moves, and the loss after its first step."""

    def loss(params):
        state = plain.adapt(Meta(params), one, jax.random.key(0))
        return losses.mean_loss(spec, plain.predict(Meta(params), state, one.x, one.mask), one)

    before, gradient = jax.value_and_grad(loss)(params)
    moves = {name: o.update(gradient, o.init(params))[0] for name, o in RATES.items()}
    return before, {
        name: (loss(optax.apply_updates(params, move)), jnp.abs(ravel_pytree(move)[0]))
        for name, move in moves.items()
    }


with jax.enable_x64(True):
    before, found = jax.tree.map(np.asarray, steps_on_support(params))
    fresh = dict(inner_optimizer="adam", inner_lr=2e-5, inner_settings=dict(eps_root=1e-20))
    through_adam = gradient_of(maml("float64", **fresh), params)
    joint = gradient_of(plain, params)

cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
print(
    "a step on a support set  support loss      moves of the middle 80 % of weights  cosine with joint training"
)
for (name, (after, sizes)), gradient in zip(found.items(), (through_adam, exact), strict=True):
    low, high = np.quantile(sizes[sizes > 0], (0.1, 0.9))
    moves = f"{low:.1e} to {high:.1e}"
    print(f"{name:23s}  {before:.4f} -> {after:.4f}  {moves:36s} {cosine(gradient, joint):.4f}")

# %% [markdown]
# ## (3): a network that changes between two looks
#
# BERT trains with *dropout*: at every call a tenth of its numbers, drawn at random, is set to zero. In the loop above
# the adapted network is asked in training mode, so the score that gets printed is that of a randomly damaged network,
# and another one at the next call. In a test it has to be off (`model.eval()`). In training it is legitimate noise,
# under one condition: all derivatives of one meta-update have to be of the network that was drawn. Second-order
# methods look at the inner loss twice, once for its gradient and once for how that gradient changes; two draws would
# mix two networks.
#
# In JAX randomness is an argument, the *key*: the same key drops the same numbers. The meta-gradient is then exact with
# dropout too, and can be checked again. `adapt` and `predict`, which answer for a test, drop nothing.

# %%
with jax.enable_x64(True):
    dropping = jax.jit(maml("float64", dropout=0.1).meta_grad)
    at = lambda w, key: dropping(Meta(unravel(w)), episodes, jax.random.key(key), 0)
    grads = at(flat, 0)[0]
    noisy = np.asarray(ravel_pytree(grads)[0])
    way, h = noisy / np.linalg.norm(noisy), 1e-5
    loss_along = lambda distance, key: float(at(flat + distance * way, key)[2]["loss"])
    same = (loss_along(h, 0) - loss_along(-h, 0)) / (2 * h)
    other = (loss_along(h, 1) - loss_along(-h, 2)) / (2 * h)
    print("meta-loss by three keys:", *(f"{loss_along(0.0, key):.4f}" for key in (0, 1, 2)))

error_with_key = abs(noisy @ way - same) / abs(same)
print(f"slope of the meta-loss with dropout: {noisy @ way:.6f}")
print(f"by finite differences, same key on both sides: {same:.6f}, relative error {error_with_key:.1e}")
print(f"by finite differences, a new key on each side: {other:.1f}")

# %% [markdown]
# ## (5): one head with fixed label numbers
#
# If *card* is class 0 in every episode, a network can learn that by heart and has no use for the support set. Its
# loss goes down nicely, and no step of adaptation is behind it (Yin et al. 2020, *Meta-Learning without
# Memorization*). So the label numbers are dealt anew in every episode: only the support tells which number means what.
#
# Below, both kinds of MAML train on four domains. Then they are asked before and after the inner step, on those domains
# and on two they never saw. Guessing gives 20 %.

# %%
STEPS = 150 if FAST else 600
seen, unseen = pools[:4], pools[4:]
learners = {"before": maml(inner_steps=0), "after": maml(inner_lr=0.05)}
adam = optax.adam(3e-3)
step = update_step(learners["after"], adam, source.build)


@jax.jit
def trained(meta, consts, rows):
    def body(state, now):
        i, batch = now
        return step(*state, consts, batch, jax.random.key(0), i)[:2], None

    return jax.lax.scan(body, (meta, adam.init(meta.params)), (jnp.arange(STEPS), rows))[0][0]


table = {}
for labels in ("fixed", "dealt anew"):
    settings = dict(random_slots=labels == "dealt anew")
    learned = trained(meta, source.consts, batches(tasks_of(seen, **settings), STEPS))
    for domains, part in (("seen domains", seen), ("new domains", unseen)):
        test = tasks_of(part, **settings)
        for when, learner in learners.items():
            values = evaluate(spec, learner, learned, test, range(10**6, 10**6 + 100), batch=50)["values"]
            table[labels, domains, when] = float(values["accuracy"].mean())
            print(
                f"labels {labels:10s}  {domains:12s}  {when:6s} the step: {table[labels, domains, when]:6.1%}"
            )

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
for axis, labels in zip(axes, ("fixed", "dealt anew"), strict=True):
    for number, when in enumerate(learners):
        heights = [100 * table[labels, domains, when] for domains in ("seen domains", "new domains")]
        bars = axis.bar(np.arange(2) + 0.38 * number - 0.19, heights, 0.36, label=f"{when} the inner step")
        axis.bar_label(bars, fmt="%.0f")
    axis.axhline(20, color="gray", linestyle=":", label="guessing")
    axis.set_xticks(range(2), ("seen domains", "new domains"))
    axis.set_title(f"label numbers {labels}")
axes[0].set_ylabel("accuracy, %")
axes[0].set_ylim(0, 112)
axes[1].legend(loc="upper right", fontsize=8)
plt.show()

# %% [markdown]
# ## (6): a test on what was trained
#
# Ten domains with 1,000 training and 200 test sentences each: so the tutorials set it up, and so does the preset
# `configs/text_domains.py` with the ten domains of CLINC150. Its test sentences are new, but their intents are
# those of the training. That measures whether the network knows these intents, not whether it learns new ones from
# five examples. For the latter whole domains have to be held out, as `configs/text.py` does. Below, the same learner
# goes both ways, with one inner step and, in the test, also with ten.
#
# Where CLINC150 is not at hand (`METAICL_DATA` names the folder above `text/`), the made-up sentences stand in. The
# encoder starts at random: leave `weights=none` out and set `METAICL_TEXT_WEIGHTS` to a folder or hub name of a
# pretrained one, which is where BERT's own strength is.

# %%
clinc150 = pathlib.Path(os.environ.get("METAICL_DATA", "")) / "text" / "clinc150_data_full.json"
dataset = "clinc150" if clinc150.is_file() else str(table_of_sentences)
argument = f"dataset={dataset},learner=maml,weights=none,quick"
if FAST:
    changes = {"train.steps": 20, "train.warmup": 2, "train.checkpoint_every": 20, "train.validate_every": 20}
    changes |= {"evaluate.episodes": 10, "evaluate.validation_episodes": 5, "data.buckets": ()}
    for place in ("data.shape", "learners.maml.encoder_settings.shape"):
        changes |= {f"{place}.layers": 1, f"{place}.width": 32}
else:
    changes = {"train.steps": 300}

print("data:", dataset if dataset == "clinc150" else "the made-up sentences")
configs = {"same intents": text_domains.get_config(argument), "held-out domain": text.get_config(argument)}
configs["held-out domain"].learners.maml = configs["same intents"].learners.maml  # the very same learner
folders = {name: workdir / name.replace(" ", "_") for name in configs}
print(run_experiment(overridden(configs["same intents"], changes), folders["same intents"]))

# %%
print(run_experiment(overridden(configs["held-out domain"], changes), folders["held-out domain"]))

# %%
for number, folder in enumerate(folders.values()):
    rows = json.loads((folder / "results.json").read_text())["rows"]
    for side, learner in enumerate(("maml", "maml 10 steps")):
        values = [
            100 * row["mean"] for row in rows if row["metric"] == "accuracy" and row["learner"] == learner
        ]
        place, color = number + 0.36 * side - 0.18, f"C{side}"
        plt.bar(place, np.mean(values), 0.32, color=color, label="one step" if not side else "ten steps")
        plt.plot(np.full(len(values), place), values, "k.", markersize=4)
    if not number:
        plt.legend()
plt.axhline(20, color="gray", linestyle=":")
plt.xticks(range(2), list(folders))
plt.ylabel("accuracy, % (dots: domains)")
plt.show()

figures = sorted((folders["same intents"] / "figures").glob("*.png"))
for path in figures:
    if path.stem in ("domains", "training"):
        display(Image(filename=str(path), width=700))

# %% [markdown]
# ## Your own sentences
#
# What a run has learned can be fitted on sentences and labels of your own, in the manner of scikit-learn: `fit` is
# the inner step, on a few sentences of each label; the probabilities are calibrated by cross-validation among them.
# An encoder that started at random and trained for a minute knows few words, so do not expect much of it here; a
# pretrained one does better. From the command line the same is `python -m metaicl.predict`.

# %%
examples = {
    "card": [
        "my card does not work",
        "I have lost my card",
        "send me a new card",
        "can I pay with this card",
    ],
    "flight": [
        "is my flight late",
        "I want to book a flight",
        "cancel the flight",
        "which gate is my flight at",
    ],
    "coffee": ["I would like a coffee", "how is coffee made", "no sugar in my coffee", "the coffee is cold"],
}
run = folders["same intents"] / next(iter(configs["same intents"].runs))
classifier = classifier_of_run(run)
classifier.fit(
    [t for texts in examples.values() for t in texts], [k for k, texts in examples.items() for _ in texts]
)
mine = {
    "please block my card": "card",
    "my flight was cancelled": "flight",
    "where can I get a good coffee": "coffee",
    "a new card, please": "card",
    "how long is the flight": "flight",
}
answers = zip(mine.items(), classifier.predict(list(mine)), classifier.predict_proba(list(mine)), strict=True)
for (sentence, truth), answer, chances in answers:
    print(
        f"{sentence:32s} {answer:7s} {chances.max():4.0%}  {'right' if answer == truth else 'wrong: ' + truth}"
    )

# %% [markdown]
# ## The loop, put right
#
# 1. Nothing is copied: the adapted weights are a function of the original ones.
# 2. The inner step is plain gradient descent with a rate that goes somewhere, or a learned one (`rates=layer`).
# 3. Dropout by a key in training, none in the test.
# 4. The gradient arrives, and finite differences agree with it.
# 5. Label numbers are dealt anew in every episode.
# 6. The test asks for domains that were held out.
#
# `configs/text.py` does all of this on CLINC150, BANKING77 or a table of your own, with FOMAML, Proto-MAML, ANIL,
# Reptile, prototypes and plain fine-tuning beside it; `adapt=lora`, `adapt=top2` and others move a part of BERT only.
