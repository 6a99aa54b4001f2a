# SPDX-License-Identifier: Apache-2.0
"""Does it hold what is said of meta-learned text encoders? Each claim, on one held-out domain of CLINC150.

    python -m metaicl.main --config=configs/text_claims.py                       all of them; with weights=PATH on a GPU
    python -m metaicl.main --config=configs/text_claims.py:weights=PATH,claim=shots,fresh=2,frozen=4,longest=16

`claim` is any of these, joined with +; the others are the arguments of `configs/text.py`, whose encoder and learners
these are. `held_out=` names the domain; else it is the first that `configs/text.py` holds out.

- `shots`: 10 to 20 sentences of a class suffice. Accuracy over 1 to 20 of them, of learners that train with 5.
- `convergence`: a meta-learned start adapts in fewer steps. Accuracy over gradient steps in the test, from the
  meta-learned and from the pretrained start; and over the length of the sentences, with `lengths=8+11`.
- `share`: fewer parameters do as well. FOMAML with each choice of `adapt`, over the share of parameters that move.
- `ratio`: how to part ten sentences of a class into support and query in training. Trained prototypes, tested with
  five in the support.

The claims are those of tutorials, which give no data and no figures; published for comparison: none were found.
"""

from ml_collections import ConfigDict

from metaicl.configuration import ConfigError, leaves, load_config_file, named, parse_argument

text = load_config_file("text", beside=__file__)

LEARNERS = ("fomaml", "anil", "protonet", "finetune", "prototypes", "logistic", "centroid")
SHOTS = (1, 2, 3, 5, 10, 20)
STEPS = {"fomaml": (1, 2, 5, 10, 20), "finetune": (1, 2, 5, 10, 20, 50)}
SUPPORTS = (1, 2, 5, 8)  # of ten
ADAPTED = ("head", "prompts", "norms", "lora", "adapters", "top1", "all")


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, text.DEFAULTS | dict(claim="+".join(CLAIMS)))
    for key in ("dataset", "learner", "adapt", "ways", "shots", "split"):
        if arg[key] != text.DEFAULTS[key]:
            raise ConfigError(f"{key}={arg[key]} is chosen by claim= here.")
    passed = {
        key: value for key, value in arg.items() if key in text.DEFAULTS and value != text.DEFAULTS[key]
    }
    arg.weights = text.chosen_weights(arg.weights)
    passed |= dict(learner="+".join(LEARNERS), lengths="", weights=arg.weights or "none")
    words = [word for word in ("quick", "full") if arg[word]]
    config = text.get_config(",".join([*words, *(f"{key}={value}" for key, value in passed.items())]))
    of_learner: dict[str, dict] = {}
    for own in config.runs.values():
        of_learner.setdefault(own.learner, dict(leaves(own)))
    config.label = ""
    config.evaluate.episodes = min(config.evaluate.episodes, 300)
    for entry in config.learners.values():
        entry.sweep = dict(setting="", values=())
    runs: dict[str, dict] = {}
    for claim in arg.claim.split("+"):
        if claim not in CLAIMS:
            raise ConfigError(f"claim={claim!r} is not one of {', '.join(CLAIMS)} (join with +).")
        for name, (learner, overrides) in CLAIMS[claim](arg, config).items():
            runs[f"{claim},{name}"] = of_learner[learner] | overrides
    config.runs = named(runs)
    return config


def shots(arg: ConfigDict, config: ConfigDict) -> dict:
    """Tested with up to 20 shots, trained with 5."""
    curve = {"evaluate.shot_curve": SHOTS, "evaluate.shot_curve_episodes": config.evaluate.episodes}
    overrides = {"task.test_shots": max(SHOTS), "task.validation_shots": arg.shots} | curve
    return {name: (name, overrides) for name in LEARNERS if name not in STEPS}


def convergence(arg: ConfigDict, config: ConfigDict) -> dict:
    """One-shot, over gradient steps and the lengths of sentences."""
    common = one_shot() | {"evaluate.lengths": text.bands(arg.lengths)}
    steps = lambda name: {
        f"learners.{name}.sweep.setting": "inner_steps",
        f"learners.{name}.sweep.values": STEPS[name],
    }
    return {
        name: (name, common | (steps(name) if name in STEPS else {}))
        for name in ("fomaml", "finetune", "protonet", "centroid")
    }


def share(arg: ConfigDict, config: ConfigDict) -> dict:
    """One-shot FOMAML, whose inner loop moves this or that."""
    found = {}
    for adapt in ADAPTED:
        added, adapted = text.adaptation({**arg, "adapt": adapt})
        entry = config.learners.fomaml.to_dict() | dict(adapted=adapted)
        settings = dict(entry["encoder_settings"], **added)
        overrides = {f"learners.fomaml.encoder_settings.{key}": value for key, value in added.items()}
        overrides |= {"learners.fomaml.adapted": adapted, "label": f"fomaml {adapt}"}
        overrides |= {"learners.fomaml.inner_lr": text.inner_rate(adapt)}
        overrides |= point("adapted parameters (%)", share_of(settings, adapted))
        found[f"adapt={adapt}"] = ("fomaml", one_shot() | overrides)
    return found


def ratio(arg: ConfigDict, config: ConfigDict) -> dict:
    """Ten sentences of a class in training, parted in support and query; tested with five in the support."""
    return {
        f"support={k}": (
            "protonet",
            {
                "task.shots": k,
                "task.queries": 10 - k,
                "task.test_shots": 5,
                "label": f"trained with {k} of 10",
            }
            | point("support, of ten", float(k)),
        )
        for k in SUPPORTS
    }


def one_shot() -> dict:
    """One sentence of a class in the support."""
    return {"task.shots": 1, "task.test_shots": 1}


def point(setting: str, value: float) -> dict:
    """Makes a run a point of a curve."""
    return {"evaluate.point.setting": setting, "evaluate.point.value": value}


def share_of(settings: dict, adapted: str) -> float:
    """Percent of the parameters of an encoder with its head, without frozen layers, that the inner loop moves."""
    import jax

    from metaicl.episode import TaskSpec
    from metaicl.learners import make_learner
    from metaicl.learners.subtree import split

    width = (
        text.shape_of(settings["weights"]).width if settings.get("weights") else settings["shape"]["width"]
    )
    item = ((8, width), "float32") if settings["frozen_layers"] else ((8,), "int32")
    spec = TaskSpec("classify", *item, 5)
    learner = make_learner("maml", spec, encoder="bert", encoder_settings=settings, adapted=adapted)
    params = jax.eval_shape(learner.init, jax.random.key(0)).params
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    return float(f"{100 * count(split(params, adapted)[0]) / count(params):.3g}")


CLAIMS = {"shots": shots, "convergence": convergence, "share": share, "ratio": ratio}
