# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learning to learn from a handful of images
#
# A person who has seen five photographs of an unfamiliar beetle recognises the sixth. An ordinary image
# classifier cannot do that: it needs thousands of labelled images of exactly the classes it is asked
# about. *Meta-learning* trains a network on many small classification tasks, so that what it learns is
# how to use a few examples, whatever they show.
#
# This notebook trains such a network in a few minutes on a CPU, without downloading any data, tests it on
# a kind of picture that it never saw, and then lets it classify a folder of images with five examples a
# class.

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

FAST = os.environ.get("METAICL_NOTEBOOK_FAST") == "1"  # a rehearsal of a minute, whose learner learns little

# %%
import json
import tempfile

import cv2
import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display

from configs.loo import get_config
from metaicl.checkpoint import load_weights
from metaicl.configuration import overridden
from metaicl.data import sampler
from metaicl.data.images import decode_pool
from metaicl.data.meta_album import read_album
from metaicl.data.procedural import EMBEDDED_DOMAINS, contact_sheet, embedded_album
from metaicl.episode import Examples, TaskSpec
from metaicl.experiment import run_experiment
from metaicl.learners import Meta, make_learner

# %% [markdown]
# ## The job
#
# Everything about an experiment stands in one config. This one, `configs/loo.py`, *leaves one domain
# out*: it trains on the data sets of all domains (glyphs, plants, machines, ...) but two, uses one of the
# two to choose the best parameters, and tests on the other. `quick` does so for three held-out domains;
# with `backbone=none` a small encoder of images is trained with everything else, where the default takes a
# frozen one.

# %%
config = get_config("quick,backbone=none")
if FAST:
    config = overridden(
        get_config("quick,backbone=none,held_out=plants"),
        {
            "data.datasets": tuple(names[0] for names in EMBEDDED_DOMAINS.values()),
            "data.embedded.classes": 8,
            "data.embedded.images_per_class": 16,
            "data.image_size": 32,
            "train.steps": 20,
            "train.warmup": 2,
            "train.checkpoint_every": 20,
            "train.validate_every": 20,
            "evaluate.episodes": 20,
            "evaluate.validation_episodes": 5,
            "evaluate.shot_curve_episodes": 10,
        },
    )
print("runs:", ", ".join(config.runs))

# %% [markdown]
# ## The images
#
# The *embedded album* is drawn by the package itself: ten domains with three data sets each. It is made
# once, in about a minute, and then kept in a cache. Below, each row shows eight classes of one data set
# with three images a class: what makes a class differs from row to row, from the shape of a leaf to the
# rhythm of a texture.

# %%
home = pathlib.Path(os.environ.get("METAICL_CACHE") or "~/.cache/metaicl").expanduser()
album = embedded_album(
    home,
    image_size=config.data.image_size,
    datasets=config.data.datasets or None,
    **config.data.embedded,
)
by_domain = {pool.domain: pool for pool in reversed(album)}
sheet = contact_sheet([by_domain[domain] for domain in EMBEDDED_DOMAINS])

plt.figure(figsize=(12, 12 * sheet.shape[0] / sheet.shape[1]))
plt.imshow(sheet)
plt.axis("off")
plt.show()

# %% [markdown]
# ## An episode
#
# The unit of training and testing is the *episode*, a classification task in miniature. A 5-way 5-shot
# episode takes five classes of one data set and five labelled images of each: the *support set*. The
# question is to which of the five classes some further images, the *queries*, belong. The labels 0 to 4
# are dealt anew in every episode, so that nothing can be learned by heart. The only way to answer well is
# to look at the support set.

# %%
WAYS, SHOTS = 5, 5

store = sampler.make_store(album)
plants = [pool for pool in album if pool.domain == "plants"]
source = sampler.episodes(store, plants, seed=0, ways=WAYS, shots=SHOTS, queries=2)
batch = {name: value[None] for name, value in source.indices(0).items()}  # a batch of one episode
episodes, _ = source.build(source.consts, batch, None)
episode = jax.tree.map(lambda a: np.asarray(a[0]), episodes)

order = np.argsort(episode.support.y, kind="stable")
figure, axes = plt.subplots(WAYS, SHOTS + 3, figsize=(10, 7), layout="constrained")
for label in range(WAYS):
    shown = episode.support.x[order][episode.support.y[order] == label]
    asked = episode.query.x[episode.query.y == label]
    for column, image in enumerate([*shown, None, *asked]):
        axes[label, column].axis("off")
        if image is not None:
            axes[label, column].imshow(image)
    axes[label, 0].set_title(f"label {label}", loc="left", fontsize=9)
axes[0, SHOTS // 2].set_title("support set", fontsize=11)
axes[0, -1].set_title("queries", fontsize=11)
plt.show()

# %% [markdown]
# ## Training
#
# The learner of the quick job is an *in-context Transformer*. A small convolutional network turns every
# image into a vector; the Transformer reads the labelled support set and the queries as one sequence and
# answers. Nothing is fine-tuned when a new task comes: it learns within the forward pass. Beside it stand
# baselines that have nothing to train, and classify the raw pixels by the nearest class mean, the nearest
# neighbour or a linear model.
#
# All that a run leaves behind lies in `workdir`. Running the cell again goes on where it stopped.

# %%
workdir = pathlib.Path(os.environ.get("METAICL_WORKDIR") or tempfile.mkdtemp(prefix="metaicl-"))
table = run_experiment(config, workdir)
print(table)

# %% [markdown]
# Every number is an accuracy in percent on episodes of the held-out domains, with half the width of its
# 95 % interval; guessing gives 20. The same records make the figures: how accuracy differs between
# domains, how it grows with the shots, and whether the learner is as sure of its answers as it may be.

# %%
for name in ("domains", "shots", "training", "reliability"):
    path = workdir / "figures" / f"{name}.png"
    if path.exists():
        display(Image(filename=str(path), width=760))

# %% [markdown]
# ## Your own images
#
# The trained learner can now be used on any pictures sorted into one folder per class. Here such a folder
# is made from images of the held-out domain, none of which the learner has seen; put the path of your own
# in its place.

# %%
run_name = next(iter(config.runs))
run_config = json.loads((workdir / run_name / "config.json").read_text())
unseen = next(pool for pool in album if pool.domain == run_config["data"]["held_out"])

my_images = pathlib.Path(tempfile.mkdtemp(prefix="images-")) / "my_images"
for label in range(WAYS):
    folder = my_images / unseen.classes[label]
    folder.mkdir(parents=True)
    for number, row in enumerate(np.flatnonzero(unseen.labels == label)[:12]):
        cv2.imwrite(str(folder / f"{number:02d}.png"), unseen.x[row][..., ::-1])  # OpenCV writes BGR

(mine,) = read_album(my_images, image_size=run_config["data"]["image_size"])
mine = decode_pool(mine)
print(f"{len(mine)} images of {len(mine.classes)} classes: {', '.join(mine.classes)}")

# %% [markdown]
# A learner is four functions. `init` makes its parameters, which are replaced by the trained ones;
# `adapt` turns a support set into a state; `predict` answers queries from that state. (`meta_grad`, the
# fourth, is for training.)

# %%
entry = dict(run_config["learners"][run_config["learner"]])
settings = {key: value for key, value in entry.items() if key not in ("kind", "train", "test")}
spec = TaskSpec("classify", tuple(mine.x.shape[1:]), "uint8", WAYS)
learner = make_learner(entry["kind"], spec, **settings | dict(entry.get("test", {})))
untrained = learner.init(jax.random.key(0))
meta = Meta(*load_weights(workdir / run_name / "weights.safetensors", untrained))

# The first five images of each class are the examples; the others are to be classified.
rank = np.concatenate([np.arange(count) for count in mine.counts])
support = Examples(mine.x[rank < SHOTS], mine.labels[rank < SHOTS], np.ones(WAYS * SHOTS, np.float32))
questions, truth = mine.x[rank >= SHOTS], mine.labels[rank >= SHOTS]

state = learner.adapt(meta, support, jax.random.key(0))
scores = learner.predict(meta, state, questions, np.ones(len(questions), np.float32))  # [Q, N]
chances = np.asarray(jax.nn.softmax(scores))
answers = chances.argmax(1)
print(f"{np.mean(answers == truth):.0%} of {len(truth)} images are right; guessing gives {1 / WAYS:.0%}.")

# %% [markdown]
# Some of its answers, with how sure it is of them. Wrong ones are red, with the true class in brackets.

# %%
some = np.random.default_rng(0).choice(len(truth), 12, replace=False)
figure, axes = plt.subplots(2, 6, figsize=(12, 5.2), layout="constrained")
for axis, i in zip(axes.flat, some, strict=True):
    right = answers[i] == truth[i]
    text = f"{mine.classes[answers[i]]} {chances[i, answers[i]]:.0%}"
    axis.imshow(questions[i])
    axis.axis("off")
    axis.set_title(
        text if right else f"{text}\n({mine.classes[truth[i]]})",
        fontsize=9,
        color="tab:green" if right else "tab:red",
    )
plt.show()

# %% [markdown]
# ## Where to go from here
#
# - `python -m metaicl.main --config=configs/loo.py:backbone=none` trains on all ten folds;
#   `:backbone=none,learner=maml`, `learner=reptile` or `learner=prototypes` trains another method on the same
#   episodes. Without `backbone=none` all learners share the features of a frozen encoder.
# - `:album=PATH` takes data sets of your own, in folders of class folders or in the layout of Meta-Album.
# - `report.html` in the workdir holds every table and figure of a run, and the command that made it.
