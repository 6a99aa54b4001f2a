# SPDX-License-Identifier: Apache-2.0
"""The parts that most configs share, so that a config names only what it does differently.

Each function gives one part (`config.data`, `config.task`, `config.train`, `config.evaluate`, `config.replicas`) with
every key that the experiment reads; keyword arguments replace defaults. ConfigError for one that there is not.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from metaicl.configuration import ConfigError, leaves, named

# Omniglot's published network: four convolutions with strides, on ink from 0 to 1. What follows them (`pool`) differs.
STRIDED = dict(
    filters=(64, 64, 64, 64), downsample="stride", norm="batch", pixels="unit", kernel_init="glorot_uniform"
)


def album(path: str, **given: Any) -> dict[str, Any]:
    """`config.data` of an album: raw images of 32 px of all its data sets, split by domain."""
    part = dict(
        kind="album",
        album=path,
        embedded=dict(seed=0, classes=20, images_per_class=40),
        datasets=(),
        image_size=32,
        backbone="none",
        weights="",
        cache="",
        skip_bad=False,
        split="domain",
        held_out="",
        validation="",
        train_on=(),  # data sets, with a split by classes or images; all are tested. Empty: all
        merge=False,  # training data sets as one pool
        big_set="",  # a folder of class folders: one data set more
        keep=dict(classes=1.0, items_of_class=0),  # share of the training classes, and items of each; 0: all
        fractions=(0.5, 0.25, 0.25),
        split_seed=0,
        min_classes=15,
    )
    return _filled("album", part, given)


# The arguments of configs of an album; an `image_size` of 0 is the backbone's own.
ALBUM = dict(album="embedded", backbone="none", weights="", cache="", datasets="", image_size=0)
# Pixels a side that frozen backbones are given: what they were trained on, or a little less where that does.
_BACKBONE_SIZES = {
    "formulas": 64,
    "untrained": 64,
    "squeezenet": 128,
    "resnet18": 224,
    "resnet34": 224,
    "resnet50": 224,
}


def chosen_album(arg: ConfigDict, *, few: tuple[str, ...] = (), **given: Any) -> dict[str, Any]:
    """`album` as the arguments `ALBUM` ask for it: the size of the backbone's images, else 32 px, with `full` 64.

    `few` are the data sets of the embedded album where the argument names none.
    """
    named_sets = tuple(arg.datasets.split("+")) if arg.datasets else few if arg.album == "embedded" else ()
    common = dict(datasets=named_sets, backbone=arg.backbone, weights=arg.weights, cache=arg.cache)
    size = arg.image_size or image_size(arg.backbone, 64 if arg.full else 32)
    return album(arg.album, **common | dict(image_size=size) | given)


def image_size(backbone: str, pixels: int = 32) -> int:
    """Pixels a side of the images that a frozen backbone is given; without one, `pixels`."""
    return pixels if backbone == "none" else _BACKBONE_SIZES.get(backbone, 128)


def trained_backbone(backbone: str, weights: str, **settings: Any) -> dict[str, Any]:
    """The encoder of a learner that trains what is called `backbone` where it is frozen, with more `settings`.

    Raises:
      ConfigError: for what is no backbone that can be trained.
    """
    if backbone not in _BACKBONE_SIZES:
        raise ConfigError(f"backbone={backbone}: give one that can be trained, {', '.join(_BACKBONE_SIZES)}.")
    if backbone in ("formulas", "untrained"):
        own = dict(weights=weights or ("package" if backbone == "formulas" else ""), pooled=2)
        return dict(encoder="small_resnet", encoder_settings=own | settings)
    if backbone.startswith("resnet"):
        own = dict(depth=int(backbone.removeprefix("resnet")), weights=weights)
        return dict(encoder="resnet", encoder_settings=own | settings)
    return dict(encoder=backbone, encoder_settings=dict(weights=weights) | settings)


def omniglot(folder: str, download: bool, split: str) -> dict[str, Any]:
    """`config.data` of Omniglot at 28 px: a folder of its two zip files, and whose published split."""
    return dict(
        kind="published",
        reader="omniglot",
        folder=folder,
        download=download,
        split=split,
        split_seed=0,
        image_size=28,
    )


def functions(dimensions: int, **given: Any) -> dict[str, Any]:
    """`config.data` of a mixture of function classes on N(0, I) inputs, without curriculum; see `data.functions`."""
    part = dict(
        kind="functions",
        dimensions=dimensions,
        classes={},  # by name: kind and settings
        weights={},  # of those that are trained on, by name; 1 in sum
        inputs=dict(distribution="gaussian", interval=(-5.0, 5.0), scale=1.0, shift="none"),
        fewest=-1,  # 0 and up: contexts of varied length, from so many points on
        curriculum=dict(every=0, dimensions=5, points=11, more_points=2, batch=64),  # every=0: none
        test=(),
    )
    return _filled("functions", part, given)


def formulas(**given: Any) -> dict[str, Any]:
    """`config.data` of pictures of formulas: a thousand classes of 16 drawings, the last 2 of each held out."""
    part = dict(
        kind="formulas",
        classes=1000,
        images=16,
        held_out=2,  # of the images of each class
        side=64,  # pixels of a drawing
        image_size=64,  # and of an image of a part of it
        formulas_seed=0,
        cache="",
        painting={},  # keyword arguments of `data.formulas.painting.Painting`
    )
    return _filled("formulas", part, given)


def text(dataset: str, **given: Any) -> dict[str, Any]:
    """`config.data` of sentences: token ids of hashed words, of one pool a domain, split by domain."""
    part = dict(
        kind="text",
        dataset=dataset,
        folder="$METAICL_DATA/text",
        by="domain",
        longest=64,
        buckets=(16, 32, 64),
        weights="",
        fresh_layers=0,  # of these weights so many layers from the top start at random
        vocabulary=16384,
        shape={},
        pool="mean",
        backbone="none",
        frozen_layers=0,  # with the backbone "bert": items are the states of so many layers, not vectors of all
        cache="",
        split="domain",
        held_out="",
        validation="",
        fractions=(0.5, 0.25, 0.25),
        split_seed=0,
        min_classes=15,
    )
    return _filled("text", part, given)


def classification(*, ways: int, shots: int, **given: Any) -> dict[str, Any]:
    """`config.task` of N-way K-shot episodes: one query a class, tested with as many shots as trained."""
    part = dict(
        ways=ways,
        shots=shots,
        queries=1,
        test_ways=0,  # as many as in training at most; of validation too
        test_shots=0,  # as many as in training
        test_queries=1,
        validation_shots=0,  # as many as in the test, and queries too
        validation_queries=0,
        weighting="uniform",
        label_noise=0.0,
        random_slots=True,
    )
    return _filled("classification", part, given)


def pseudo_tasks(**given: Any) -> dict[str, Any]:
    """`config.task.pseudo`: training on labelled episodes, unless `draw_from` asks for pseudo-tasks."""
    part = dict(
        draw_from="",  # "data_set": the images of a pseudo-task are of one data set (GEOM-U); "pool": of all (CAMeLU)
        mode="mixed",  # or "strong": nothing is mixed into the queries
        mixing=(0.01, 0.499),  # weights of the image that is mixed in
    )
    return _filled("pseudo_tasks", part, given)


def training(*, steps: int, **given: Any) -> dict[str, Any]:
    """`config.train`: Adam at 1e-3, constant, unclipped; checkpoints now and then, no validation."""
    part = dict(
        steps=steps,
        batch=1,
        optimizer="adam",
        learning_rate=1e-3,
        warmup=0,
        decay="none",
        clip=0.0,
        weight_decay=0.0,
        log_every=25,
        checkpoint_every=max(steps // 4, 1),
        validate_every=0,
    )
    return _filled("training", part, given)


def evaluation(**given: Any) -> dict[str, Any]:
    """`config.evaluate`: 600 fixed episodes of every test set, nothing else."""
    part = dict(
        episodes=600,
        batch=20,
        seed=1000,
        splits=("test",),
        select="best",  # parameters in validation, where there is one; or the "last"
        validation_episodes=0,
        shot_curve=(),
        shot_curve_learners=(),
        shot_curve_episodes=0,
        fits=0,
        probes={},
        out_of_scope=0,  # queries of no class more, of each test episode of sentences
        # Test sets more, as points of curves:
        lengths=(),  # of sentences of up to the first number of tokens, the second, ... (rising)
        label_noise=(),  # with these shares of the support labels wrong
        ways=(),  # of so many ways
        compare=(),  # pairs of labels of replicas whose answers are compared
        point=dict(setting="", value=0.0),
    )
    return _filled("evaluation", part, given)


def seeds(count: int) -> ConfigDict:
    """`config.replicas` that differ in their seeds, trained side by side; none for one seed."""
    return named({f"seed={s}": {"seed": s} for s in range(count)} if count > 1 else {})


def varied(config: ConfigDict, variants: Mapping[str, Mapping[str, Any]]) -> None:
    """Does every run of a config once for each variant: its overrides on top, its name as the label in the tables.

    Baselines, which a variant of training does not change, are measured beside the first one.
    """
    config.label = ""
    runs = {}
    for name, own in config.runs.items():
        for number, (label, overrides) in enumerate(variants.items()):
            more = {"baselines": ()} if number else {}
            runs[f"{name},{label}"] = dict(leaves(own)) | more | {"label": label} | dict(overrides)
    config.runs = named(runs)


def small_learners(frozen: bool) -> dict[str, dict[str, Any]]:
    """`config.learners` for two cores, and ridge regression on each episode's support set.

    Args:
      frozen: for the features of a frozen backbone; else for small images, behind a convolutional encoder.
    """
    filters = dict(filters=(16, 32, 32, 32), downsample="stride", pool="flatten", norm="group")
    pixels = dict(encoder="conv", encoder_settings=filters)
    features = dict(encoder="identity", encoder_settings=dict(normalize="sqrt_unit"))
    residual = dict(encoder="mlp", encoder_settings=dict(hidden=(256,), residual=True, normalize="sqrt_unit"))
    front = features if frozen else pixels
    token = dict(labels="relation", readout="matching", layers=2, heads=4, mlp=256)
    ridge = dict(kind="closed_form", method="ridge", penalty=100.0, temperature=0.1)
    return {
        "in_context": dict(
            kind="in_context", attention="packed", image_width=256 if frozen else 128, **token, **front
        ),
        "prototypes": dict(kind="prototypes", **(residual if frozen else pixels)),
        "maml": dict(kind="maml", inner_steps=3, inner_lr=0.05, test=dict(inner_steps=10), **front),
        "ridge": dict(ridge, **(features if frozen else dict(encoder="identity"))),
    }


def _filled(name: str, part: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    for key in given:
        if key not in part:
            near = difflib.get_close_matches(key, part, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"defaults.{name} has no setting {key!r}{hint}")
    return part | given
