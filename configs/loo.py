# SPDX-License-Identifier: Apache-2.0
"""Leave one domain out: train on all domains but two, choose on one, test on one that was never seen.

The protocol of GEOM (arXiv 2507.05019): N-way K-shot episodes, each from one data set; one run per held-out
domain. The validation domain rotates with the held-out one, and is never it.

    python -m metaicl.main --config=configs/loo.py                 the embedded album, no download
    python -m metaicl.main --config=configs/loo.py:quick           three of its domains held out
    python -m metaicl.main --config=configs/loo.py:learner=prototypes
    python -m metaicl.main --config=configs/loo.py:backbone=none            the encoder is trained too, on the pixels
    python -m metaicl.main --config=configs/loo.py:album=PATH,backbone=squeezenet,weights=PATH
    python -m metaicl.main --config=configs/loo.py:album=PATH,backbone=squeezenet,weights=PATH,tune
    python -m metaicl.main --config=configs/loo.py:album=PATH,backbone=resnet50,weights=PATH,full

All learners share the frozen features of a backbone, as in the publication: the encoder f is frozen, the embedding of
labels g and the Transformer M are learned. The backbone `formulas` comes with the package (`configs/formulas.py`) and
never saw a photograph or the embedded album; others need their `weights`. With `backbone=none` a small convolutional
encoder is trained inside the learner (in_context, prototypes, maml, fomaml or reptile), beside every closed-form
learner on the raw pixels.
Images have `image_size` pixels a side, by default 64 for formulas, 128 for squeezenet, 224 for resnet18,
resnet34 and resnet50.

`tune` trains nothing: it compares settings of the closed-form learners on the validation domains. The settings below
are what its run 5 chose on a real album (validated on plants, 2 data sets of 60 episodes), for all folds alike.
`datasets=NAME+NAME` takes some of the data sets, and holds out the domains of those. `full` is the published length of
training, for a GPU or TPU.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, named, parse_argument, separate

DEFAULTS = defaults.ALBUM | dict(backbone="formulas", learner="", held_out="", seeds=1)
CONV = dict(filters=(32, 64, 64, 64), downsample="stride", pool="flatten", norm="group")
PIXELS = dict(encoder="conv", encoder_settings=CONV)
FEATURES = dict(encoder="identity", encoder_settings=dict(normalize="sqrt_unit"))
FEW = ("machines", "glyphs", "solids")  # to hold out where a comparison takes many trainings: the hard ones
REPTILE = dict(optimizer="sgd", learning_rate=1.0, decay="linear", warmup=0, clip=0.0)


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse(argument, flags=("quick", "full", "tune"))
    frozen = arg.backbone != "none"
    config = ConfigDict()
    config.seed = 0
    config.data = data(arg)
    config.task = defaults.classification(ways=5, shots=5, queries=5, test_queries=5 if frozen else 10)
    trained = frozen_learners(arg) if frozen else pixel_learners()
    untrained = closed_form_grid() if arg.tune else closed_form(frozen)
    config.learners = separate(trained | untrained)
    default = ["matching", "prototypes"] if frozen else ["in_context"]
    chosen = arg.learner.split("+") if arg.learner else default
    if arg.tune:
        chosen = list(untrained)[:1]
    elif unknown := [name for name in chosen if name not in trained]:
        elsewhere = unknown[0] in (pixel_learners() if frozen else frozen_learners(arg))
        hint = f" With {'backbone=none' if frozen else 'a backbone'} there is." if elsewhere else ""
        raise ConfigError(
            f"learner={unknown[0]!r} is not one of {', '.join(trained)} (join several with +).{hint}"
        )
    config.learner = chosen[0]
    config.baselines = tuple(name for name in untrained if name not in chosen)
    config.train = train(arg)
    config.evaluate = evaluation(arg)
    config.replicas = defaults.seeds(arg.seeds)
    config.runs = named(runs(arg, chosen, list(untrained)))
    return config


def parse(argument: str | None, *, flags: tuple[str, ...] = ("quick", "full"), **more) -> ConfigDict:
    """The argument; `more` are defaults of another config."""
    return parse_argument(argument, DEFAULTS | more, flags=flags)


def with_one_learner(
    argument: str | None, arg: ConfigDict, *, domains: int = 3, without: tuple[str, ...] = ()
) -> str:
    """The argument for comparisons of one learner's trainings: the learner it names, else the one that is best here.

    Of the embedded album so many domains are held out, unless the argument names them or is `full`; one if `quick`.
    Keys of another config, `without`, are left out.
    """
    learner = arg.learner or ("in_context" if arg.backbone == "none" else "matching")
    dropped = ("learner", *without)
    kept = [part for part in (argument or "").split(",") if part and part.partition("=")[0] not in dropped]
    if arg.album == "embedded" and not (arg.held_out or arg.full or arg.datasets):
        kept.append(f"held_out={'+'.join(FEW[: 1 if arg.quick else domains])}")
    return ",".join([*kept, f"learner={learner}"])


def data(arg: ConfigDict) -> dict:
    """What is read, and how it is split."""
    return defaults.chosen_album(arg)


def train(arg: ConfigDict) -> dict:
    """The schedule of the trained learners: Adam, clipped, warmed up, cosine to zero."""
    # The in-context learners take longer than the others on frozen features: see their entries.
    default = 400 if arg.backbone != "none" else 300
    steps = 0 if arg.tune else 50_000 if arg.full else 200 if arg.quick else default
    return defaults.training(
        steps=steps,
        batch=16 if arg.backbone != "none" else 4,
        warmup=steps // 10,
        decay="cosine",
        clip=1.0,
        validate_every=100 if arg.backbone != "none" else max(steps // 4, 1),
    )


def evaluation(arg: ConfigDict) -> dict:
    """How many fixed episodes of each data set are answered."""
    return defaults.evaluation(
        episodes=60 if arg.quick or arg.tune else 100 if arg.album == "embedded" and not arg.full else 600,
        batch=25,
        splits=("validation",) if arg.tune else ("test",),
        validation_episodes=20 if arg.quick else 50,
        shot_curve=() if arg.tune else (0, 1, 5) if arg.quick else (0, 1, 2, 5),
        shot_curve_episodes=25 if arg.quick else 200 if arg.full else 40,
    )


def pixel_learners() -> dict:
    """Learners whose encoder is trained with them, on images."""
    token = dict(labels="relation", readout="matching", image_width=128, layers=2, heads=4, mlp=256)
    steps = dict(inner_steps=3, inner_lr=0.05, test=dict(inner_steps=10))
    return {
        "in_context": dict(kind="in_context", attention="packed", **token, **PIXELS),
        "prototypes": dict(kind="prototypes", **PIXELS),
        "maml": dict(kind="maml", **steps, **PIXELS),
        "fomaml": dict(kind="maml", order="first", **steps, **PIXELS),
        "reptile": dict(
            kind="reptile",
            inner_steps=5,
            inner_lr=1e-3,
            inner_batch=10,
            test=dict(inner_steps=30),
            train=REPTILE,
            **PIXELS,
        ),
    }


def frozen_learners(arg: ConfigDict) -> dict:
    """Learners on the features of a frozen backbone, sized for a CPU; `geom` is the published shape.

    The fixed simplex of label codes leaves the plateau at chance, which the linear read-out starts on, in a
    few hundred steps; the learned table of the publication takes longer.
    """
    shape = dict(kind="in_context", layers=2, heads=4, mlp=256, **FEATURES)
    linear = dict(shape, labels="simplex", readout="linear", image_width=192, label_width=64)
    matching = dict(shape, labels="relation", readout="matching", image_width=256, start="features")
    residual = dict(hidden=(256,), residual=True, normalize="sqrt_unit")
    gentle = dict(learning_rate=3e-4)
    own = lambda steps: {} if arg.full else dict(steps=steps, warmup=steps // 10)
    return {
        "joint": dict(linear, attention="joint", train=own(400)),
        "packed": dict(linear, attention="packed", train=own(600)),
        "matching": dict(matching, attention="packed", train=dict(learning_rate=3e-5)),
        "geom": dict(
            kind="geom", **FEATURES, train=dict(learning_rate=1e-5, batch=1, steps=50_000, warmup=1500)
        ),
        "prototypes": dict(kind="prototypes", encoder="mlp", encoder_settings=residual, train=gentle),
    }


def closed_form(frozen: bool) -> dict:
    """Every closed-form learner; on frozen features also behind a whitening learned on the training domains."""
    front = FEATURES if frozen else dict(encoder="identity")
    plain = {
        "centroid": dict(method="centroid", temperature=0.5),
        "centroid_cosine": dict(method="centroid", metric="cosine", temperature=0.1),
        "knn": dict(method="knn", neighbours=1),
        "ridge": dict(method="ridge", penalty=100.0, temperature=0.1),
        "logistic": dict(method="logistic", penalty=10.0),
    }
    entries = {name: dict(kind="closed_form", **front, **settings) for name, settings in plain.items()}
    if frozen:
        entries |= {f"{name}_whitened": whitened(entry) for name, entry in list(entries.items())}
    return entries


def whitened(entry: dict, shrinkage: float = 0.6) -> dict:
    """A closed-form learner behind a whitening that 200 batches of training episodes estimate."""
    return dict(entry, whiten=True, shrinkage=shrinkage, train=dict(steps=200, batch=16, warmup=0))


def closed_form_grid() -> dict:
    """The settings that `tune` compares, each by name."""
    plain = {
        "centroid": dict(method="centroid", temperature=0.5),
        "centroid_cosine": dict(method="centroid", metric="cosine", temperature=0.1),
        **{f"knn,{k}": dict(method="knn", neighbours=k) for k in (1, 3, 5)},
        **{f"ridge,{p}": dict(method="ridge", penalty=float(p), temperature=0.1) for p in (10, 100, 1000)},
        **{f"logistic,{p}": dict(method="logistic", penalty=float(p)) for p in (3, 10, 30, 100)},
    }
    entries = {name: dict(kind="closed_form", **FEATURES, **settings) for name, settings in plain.items()}
    for percent in (10, 30, 60):
        for name in ("centroid", "centroid_cosine", "knn,1", "ridge,100", "logistic,10"):
            entries[f"{name},whitened,{percent}%"] = whitened(entries[name], percent / 100)
    return entries


def runs(arg: ConfigDict, chosen: list[str], untrained: list[str]) -> dict:
    """One run per held-out domain; with several trained learners one for each, and one for the baselines."""
    from metaicl.data.meta_album import list_domains
    from metaicl.data.procedural import EMBEDDED_DOMAINS
    from metaicl.data.splits import find_domain

    wanted = data(arg)["datasets"]
    if arg.album == "embedded":
        domains = sorted(d for d, names in EMBEDDED_DOMAINS.items() if not wanted or set(names) & set(wanted))
    else:
        domains = list_domains(arg.album, wanted)
    if arg.held_out:
        domains = [find_domain(name, domains) for name in arg.held_out.split("+")]
    elif arg.quick:
        domains = domains[::4]
    several = len(chosen) > 1
    result = {}
    for domain in domains:
        name = f"held_out={domain.replace(' ', '_')}"
        for learner in chosen:
            overrides: dict = {"data.held_out": domain, "learner": learner}
            if learner == "joint":
                overrides["task.queries"] = 2  # every query is a sequence of its own
            if several:
                overrides["baselines"] = ()
            result[f"{name},learner={learner}" if several else name] = overrides
        if several:
            first, *rest = untrained
            overrides = {
                "data.held_out": domain,
                "learner": first,
                "baselines": tuple(rest),
                "train.steps": 0,
            }
            result[f"{name},closed_form"] = overrides
    return result
