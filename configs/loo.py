# SPDX-License-Identifier: Apache-2.0
"""Leave one domain out: train on all domains but two, choose on one, test on one that was never seen.

The protocol of GEOM (arXiv 2507.05019): N-way K-shot episodes, each from one data set; one run per held-out
domain. The validation domain rotates with the held-out one, and is never it.

    python -m metaicl.main --config=configs/loo.py                 the embedded album, no download
    python -m metaicl.main --config=configs/loo.py:quick           three held-out domains
    python -m metaicl.main --config=configs/loo.py:learner=prototypes
    python -m metaicl.main --config=configs/loo.py:album=PATH,backbone=squeezenet,weights=PATH

Without `album`, images of the embedded album and a small convolutional encoder that is trained inside the
learner, beside every closed-form learner on the raw pixels. With `album`, a folder in Meta-Album's layout; with
a backbone, its frozen features, which all learners share.
"""

from ml_collections import ConfigDict

from metaicl.configuration import ConfigError, named, parse_argument

ENCODER = {
    "encoder": "conv",
    "encoder_settings": {
        "filters": (32, 64, 64, 64),
        "downsample": "stride",
        "pool": "flatten",
        "norm": "group",
    },
}
FEATURES = {"encoder": "identity", "encoder_settings": {"normalize": "sqrt_unit"}}


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(
        argument,
        dict(album="embedded", backbone="none", weights="", learner="", held_out="", seeds=1, cache=""),
    )
    config = ConfigDict()
    config.seed = 0
    config.data = data(arg)
    config.task = dict(
        ways=5, shots=5, queries=5, test_queries=10, weighting="uniform", label_noise=0.0, random_slots=True
    )
    config.learners = frozen_learners() if arg.backbone != "none" else pixel_learners()
    config.learners.update(closed_form(FEATURES if arg.backbone != "none" else {}, arg.backbone != "none"))
    trained = [name for name, entry in config.learners.items() if entry.kind != "closed_form"]
    default = ["joint", "packed", "prototypes"] if arg.backbone != "none" else ["in_context"]
    chosen = arg.learner.split("+") if arg.learner else default
    for name in chosen:
        if name not in trained:
            raise ConfigError(f"learner={name!r} is not one of {', '.join(trained)} (join several with +).")
    config.learner = chosen[0]
    config.baselines = tuple(name for name, entry in config.learners.items() if entry.kind == "closed_form")
    config.train = train(arg)
    config.evaluate = dict(
        episodes=600 if arg.album != "embedded" or arg.full else 100,
        batch=25,
        seed=1000,
        validation_episodes=50,
        validation_records=False,
        shot_curve=(0, 1, 2, 3, 4, 5),
        shot_curve_learners=(),
        shot_curve_episodes=200 if arg.full else 50,
    )
    if arg.quick:
        config.evaluate.update(
            episodes=60, validation_episodes=20, shot_curve=(0, 1, 5), shot_curve_episodes=25
        )
    config.replicas = named({f"seed={s}": {"seed": s} for s in range(arg.seeds)} if arg.seeds > 1 else {})
    config.runs = named(runs(arg, chosen, default))
    return config


def data(arg: ConfigDict) -> ConfigDict:
    """What is read, and how it is split."""
    return ConfigDict(
        dict(
            kind="album",
            album=arg.album,
            embedded=dict(seed=0, classes=20, images_per_class=40),
            datasets=(),
            image_size=64 if arg.backbone == "none" else 128,
            backbone=arg.backbone,
            weights=arg.weights,
            cache=arg.cache,
            skip_bad=False,
            split="domain",
            held_out="",
            validation="",
            fractions=(0.5, 0.25, 0.25),
            split_seed=0,
            min_classes=15,
        )
    )


def train(arg: ConfigDict) -> ConfigDict:
    """The schedule of the trained learners: Adam, clipped, warmed up, cosine to zero."""
    steps = 400 if arg.backbone == "none" else 2000
    if arg.quick:
        steps = 200
    if arg.full:
        steps = 50_000
    return ConfigDict(
        dict(
            steps=steps,
            batch=4 if arg.backbone == "none" else 16,
            optimizer="adam",
            learning_rate=1e-3,
            warmup=steps // 10,
            decay="cosine",
            clip=1.0,
            weight_decay=0.0,
            log_every=25,
            checkpoint_every=max(steps // 4, 1),
            validate_every=max(steps // 4, 1),
        )
    )


def pixel_learners() -> ConfigDict:
    """Learners whose encoder is trained with them, on images."""
    reptile_train = dict(optimizer="sgd", learning_rate=1.0, decay="linear", warmup=0, clip=0.0)
    return ConfigDict(
        {
            "in_context": dict(
                kind="in_context",
                attention="packed",
                labels="relation",
                readout="matching",
                image_width=128,
                layers=2,
                heads=4,
                mlp=256,
                **ENCODER,
            ),
            "prototypes": dict(kind="prototypes", **ENCODER),
            "maml": dict(kind="maml", inner_steps=3, inner_lr=0.05, test=dict(inner_steps=10), **ENCODER),
            "fomaml": dict(
                kind="maml", order="first", inner_steps=3, inner_lr=0.05, test=dict(inner_steps=10), **ENCODER
            ),
            "reptile": dict(
                kind="reptile",
                inner_steps=5,
                inner_lr=1e-3,
                test=dict(inner_steps=30),
                train=reptile_train,
                **ENCODER,
            ),
        }
    )


def frozen_learners() -> ConfigDict:
    """Learners on the features of a frozen backbone, sized for a CPU; `geom` is the published shape."""
    shape = dict(kind="in_context", image_width=192, label_width=64, layers=2, heads=4, mlp=512, **FEATURES)
    matching = dict(image_width=256, labels="relation", readout="matching")
    slow = dict(train=dict(learning_rate=3e-4))
    return ConfigDict(
        {
            "joint": dict(shape, attention="joint", **slow),
            "packed": dict(shape, attention="packed", **slow),
            "matching": dict(shape | matching, attention="packed", **slow),
            "geom": dict(kind="geom", **FEATURES, train=dict(learning_rate=1e-5, batch=1, steps=50_000)),
            "prototypes": dict(
                kind="prototypes",
                encoder="mlp",
                encoder_settings=dict(hidden=(512,), out=256, normalize="sqrt_unit"),
            ),
        }
    )


def closed_form(encoder: dict, whitened: bool) -> ConfigDict:
    """Every closed-form learner; on frozen features also behind a whitening learned on the training domains."""
    unit = encoder or {"encoder": "identity"}
    plain = {
        "centroid": dict(method="centroid", temperature=0.1),
        "centroid_cosine": dict(method="centroid", metric="cosine", temperature=0.1),
        "knn": dict(method="knn", neighbours=1, temperature=0.2),
        "ridge": dict(method="ridge", penalty=100.0, temperature=0.1),
        "logistic": dict(method="logistic", penalty=10.0),
    }
    entries = {name: dict(kind="closed_form", **unit, **settings) for name, settings in plain.items()}
    if whitened:
        fit = dict(whiten=True, shrinkage=0.3, train=dict(steps=200, batch=16, warmup=0))
        entries |= {f"{name}_whitened": dict(entry, **fit) for name, entry in list(entries.items())}
    return ConfigDict(entries)


def runs(arg: ConfigDict, chosen: list[str], default: list[str]) -> dict:
    """One run per held-out domain and trained learner; the first learner's runs evaluate the baselines too."""
    if arg.album == "embedded":
        from metaicl.data.procedural import EMBEDDED_DOMAINS

        domains = sorted(EMBEDDED_DOMAINS)
    else:
        from metaicl.data.meta_album import list_domains

        domains = list_domains(arg.album)
    if arg.held_out:
        from metaicl.data.splits import find_domain

        domains = [find_domain(name, domains) for name in arg.held_out.split("+")]
    elif arg.quick:
        domains = domains[::4]
    result = {}
    for domain in domains:
        for learner in chosen:
            name = f"held_out={domain}" if chosen == default[:1] else f"held_out={domain},learner={learner}"
            overrides = {"data.held_out": domain, "learner": learner}
            result[name] = overrides | ({} if learner == chosen[0] else {"baselines": ()})
    return result
