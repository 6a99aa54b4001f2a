# SPDX-License-Identifier: Apache-2.0
"""Few-shot text classification: every learner on one Transformer encoder of sentences, the same splits and budget.

    python -m metaicl.main --config=configs/text.py                                    FOMAML, three domains held out
    python -m metaicl.main --config=configs/text.py:dataset=clinc150,learner=fomaml,quick
    python -m metaicl.main --config=configs/text.py:dataset=banking77,learner=prototypes+logistic+anil
    python -m metaicl.main --config=configs/text.py:learner=maml+finetune,adapt=top2,shots=1,weights=PATH
    python -m metaicl.main --config=configs/text.py:dataset=PATH,learner=reptile,adapt=adapters

`dataset` is `clinc150` (10 domains of 15 intents) or `banking77` (77 intents), whose files `folder` holds
(`$METAICL_DATA/text` unless given), or a .csv, .tsv or .jsonl file of `text`, `label` and, if there are several,
`domain`. With three domains or more one is held out for the test and the next one validates (`held_out=A+B` names
them; `full` takes all); else, or with `split=class`, training, validation and test have a third of the classes each.

`weights` is the folder or hub name of a BERT or DistilBERT with its tokenizer, such as
sentence-transformers/all-MiniLM-L6-v2 (`$METAICL_TEXT_WEIGHTS` unless given; `weights=none` for none). Without weights
a small BERT over hashed words starts at random: it shows the way, and what training alone gives.

`learner`: `maml`, `fomaml`, `protomaml` (its head starts from the class means), `reptile`, `anil`, `protonet`
(prototypes whose encoder is trained), `finetune` (no meta-training, 30 steps of Adam on the support), and on the
cached vectors of the frozen encoder `prototypes`, `in_context`, `logistic`, `centroid`. `adapt` says what the inner
loop of the first four and of `finetune` moves: `all`, `head`, `topK` layers, `norms`, `adapters`, `lora`, `prompts`,
or `warp`, all but the feed-forward parts; the head always moves. `fresh=2` starts the two top layers of `weights` at
random: where an encoder was trained on much the same task already, that leaves something to learn. `rates=layer`
learns the inner rates of `maml`, `fomaml`, `protomaml` and `anil`, one per array and step; where they begin has not
been tuned. `frozen=4` leaves the embeddings and the four lowest layers as they are, in training and adaptation: their
output is computed once and cached, and a step costs a third with two of six layers left. `longest=16` cuts sentences
to 16 tokens, and counts them. `dropout=0.1` is that of BERT, in training alone. `out_of_scope=10` (clinc150) adds ten
queries of no class to each test episode, and records how well the largest probability and the energy tell them apart.
`lengths=8+11` adds test sets of sentences of up to 8 tokens, and of 9 to 11, as points of a curve.
`quick` is sized for two minutes on two cores, without weights. `configs/text_table.py` compares all learners.
"""

import os
import re
from collections.abc import Mapping

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, named, parse_argument, separate

DEFAULTS = dict(
    dataset="clinc150",
    learner="fomaml",
    adapt="all",
    rates="fixed",
    fresh=0,
    frozen=0,
    longest=64,
    dropout=0.0,
    ways=5,
    shots=5,
    weights="",
    held_out="",
    split="",
    folder="$METAICL_DATA/text",
    cache="",
    out_of_scope=0,
    lengths="",
    seeds=1,
)
SMALL = dict(width=64, layers=2, heads=4, hidden=128, positions=64)
VOCABULARY = 16384
# For each choice of `adapt`: what is added to the encoder, and the paths that the inner loop moves.
ADAPT = {
    "all": ({}, "all"),
    "head": ({}, "head"),
    "norms": ({}, "encoder/*norm+head"),
    "adapters": (dict(adapters=32), "encoder/*adapter*+head"),
    "lora": (dict(lora=4), "encoder/*lora*+head"),
    "prompts": (dict(prompts=8), "encoder/*prompts*+head"),
    "warp": ({}, "-encoder/*/feed_forward*"),
}
FEW_PARAMETERS = ("head", "norms", "adapters", "lora", "prompts")
VECTORS = ("prototypes", "in_context", "logistic", "centroid")  # on vectors of the frozen encoder


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, DEFAULTS)
    arg.weights = chosen_weights(arg.weights)
    if arg.frozen and not arg.weights:
        raise ConfigError(f"frozen={arg.frozen}: without weights that leaves random layers; give weights=.")
    if arg.fresh and not arg.weights:
        raise ConfigError(f"fresh={arg.fresh}: without weights all layers start at random; give weights=.")
    config = ConfigDict()
    config.seed = 0
    domains = held_out(arg)
    config.data = data(arg, bool(domains))
    config.task = defaults.classification(
        ways=arg.ways, shots=arg.shots, test_shots=arg.shots, queries=5, test_queries=10
    )
    config.learners = separate(learners(arg))
    chosen = arg.learner.split("+")
    if unknown := [name for name in chosen if name not in config.learners]:
        raise ConfigError(f"learner={unknown[0]!r} is not one of {', '.join(config.learners)} (join with +).")
    config.learner = chosen[0]
    config.baselines = ()
    steps = 5000 if arg.full else 150 if arg.quick else 600
    config.train = defaults.training(
        steps=steps,
        batch=4,
        learning_rate=3e-5 if arg.weights else 1e-3,
        warmup=steps // 10,
        decay="cosine",
        clip=1.0,
        checkpoint_every=max(steps // 4, 1),
        validate_every=max(steps // 4, 1),
    )
    episodes = dict(episodes=100, validation_episodes=20) if arg.quick else dict(validation_episodes=60)
    more = dict(out_of_scope=arg.out_of_scope, lengths=bands(arg.lengths))
    config.evaluate = defaults.evaluation(batch=20, **more, **episodes)
    config.replicas = defaults.seeds(arg.seeds)
    config.runs = named(runs(chosen, domains, arg.frozen))
    return config


def chosen_weights(given: str) -> str:
    """The weights that are given, else those of the environment, or none."""
    # The variable and not its value: what a run leaves behind does not depend on the machine.
    there = "$METAICL_TEXT_WEIGHTS" if os.environ.get("METAICL_TEXT_WEIGHTS") else ""
    return "" if given == "none" else given or there


def bands(given: str | int) -> tuple[int, ...]:
    """Where bands of lengths end, `8+12` in words."""
    parts = str(given).split("+") if given != "" else []
    ends = tuple(int(part) for part in parts if part.isdigit())
    if len(ends) < len(parts) or sorted(set(ends)) != list(ends):
        raise ConfigError(f"lengths={given!r}: give rising numbers of tokens, as lengths=8+12.")
    return ends


def held_out(arg: ConfigDict) -> list[str]:
    """The domains to hold out, one after another; none for a split by classes."""
    from metaicl.data.splits import find_domain
    from metaicl.data.text import list_domains

    if arg.split not in ("", "domain", "class"):
        raise ConfigError(f"split={arg.split!r} is not one of domain, class.")
    domains = [] if arg.split == "class" else list_domains(arg.dataset, arg.folder)
    if arg.held_out and (arg.split == "class" or len(domains) < 2):
        raise ConfigError(f"held_out={arg.held_out!r}: classes are split, there is no domain to hold out.")
    if arg.split == "domain" and len(domains) < 2:
        raise ConfigError(f"split=domain needs two domains; {arg.dataset} has {', '.join(domains)}.")
    if arg.held_out:
        return [find_domain(name, domains) for name in arg.held_out.split("+")]
    if len(domains) < (2 if arg.split else 3):
        return []
    return domains if arg.full else domains[:1] if arg.quick else domains[:: max(len(domains) // 3, 1)][:3]


def data(arg: ConfigDict, by_domain: bool) -> dict:
    """What is read, and how it is split."""
    split = dict(by="domain", split="domain") if by_domain else dict(by="all", split="within")
    return defaults.text(
        arg.dataset,
        folder=arg.folder,
        weights=arg.weights,
        fresh_layers=arg.fresh,
        longest=arg.longest,
        vocabulary=VOCABULARY,
        shape=dict(SMALL),
        cache=arg.cache,
        fractions=(1 / 3, 1 / 3, 1 / 3),
        min_classes=3 * arg.ways,  # with fewer, all classes are in all parts, and their sentences shared out
        **split,
    )


def adaptation(arg: Mapping) -> tuple[dict, str]:
    """What `adapt` adds to the encoder, and which paths it lets the inner loop move."""
    if top := re.fullmatch(r"top([1-9]\d*)", arg["adapt"]):
        layers = number_of_layers(arg["weights"])
        if int(top[1]) > layers - arg["frozen"]:
            raise ConfigError(
                f"adapt={arg['adapt']}: the encoder has {layers} layers, {arg['frozen']} of them frozen."
            )
        paths = [f"encoder/layer_{i}" for i in range(layers - int(top[1]), layers)]
        return {}, "+".join([*paths, "head"])
    if arg["adapt"] not in ADAPT:
        raise ConfigError(f"adapt={arg['adapt']!r} is not one of {', '.join(ADAPT)}, top1, top2, ...")
    return ADAPT[arg["adapt"]]


def inner_rate(adapt: str) -> float:
    """The inner rate of what is adapted; of few parameters the better of 0.05 and 0.5 on one validation domain.

    5 was worse still (head: not tried). `all`, `warp` and single layers have 0.05; 0.2 (`all`, ten steps in the test)
    was no better there.
    """
    return 0.5 if adapt in FEW_PARAMETERS else 0.05


def number_of_layers(weights: str) -> int:
    """Of the pretrained encoder, or of the small one."""
    return shape_of(weights).layers if weights else SMALL["layers"]


def shape_of(weights: str):
    """The shape of the pretrained encoder."""
    from metaicl.models.bert_weights import read_config, weights_folder

    return read_config(weights_folder(weights))[1]


def learners(arg: ConfigDict) -> dict:
    """Each with its encoder, what it adapts, and its outer schedule where it is not the common one."""
    added, adapted = adaptation(arg)
    encoder = dict(weights=arg.weights) if arg.weights else dict(shape=dict(SMALL, vocabulary=VOCABULARY))
    encoder |= dict(dropout=arg.dropout, fresh_layers=arg.fresh, frozen_layers=arg.frozen, remat=False)
    encoder |= dict(adapters=0, lora=0, prompts=0)
    bert = dict(encoder="bert", encoder_settings=encoder | added)
    plain = dict(encoder="bert", encoder_settings=encoder)
    # With five sentences of a class 20 steps in the test are worth 8 points over 5 on a validation domain (FOMAML).
    steps = dict(inner_steps=5, inner_lr=inner_rate(arg.adapt), test=dict(inner_steps=20))
    maml = dict(bert, kind="maml", adapted=adapted, rates=arg.rates, **steps)
    own = dict(encoder="identity", encoder_settings=dict(normalize="unit"))
    residual = dict(hidden=(256,), residual=True, normalize="unit")
    # Begins as a classifier by the cosines of the vectors, as `matching` of `configs/loo.py`.
    token = dict(attention="packed", labels="relation", readout="matching", image_width=384, start="features")
    return {
        "maml": maml,
        "fomaml": dict(maml, order="first"),
        "protomaml": dict(maml, head="prototypes"),
        "anil": dict(maml | plain, adapted="head", inner_lr=inner_rate("head")),
        "reptile": dict(
            bert,
            kind="reptile",
            moments="fresh",
            inner_steps=5,
            inner_lr=1e-3,
            inner_batch=None,
            adapted=adapted,
            test=dict(inner_steps=30),
            train=dict(optimizer="sgd", learning_rate=1.0, decay="linear", warmup=0, clip=0.0),
        ),
        "finetune": dict(
            bert,
            kind="maml",
            order="first",
            inner_steps=30,
            inner_lr=3e-4 if arg.weights else 1e-3,  # the best of seven pairs, on validation domains
            inner_optimizer="adam",
            adapted=adapted,
            train=dict(steps=0),
        ),
        "protonet": dict(plain, kind="prototypes"),
        "prototypes": dict(
            kind="prototypes", encoder="mlp", encoder_settings=residual, train=dict(learning_rate=3e-4)
        ),
        "in_context": dict(
            own, kind="in_context", layers=2, heads=4, mlp=256, **token, train=dict(learning_rate=1e-4)
        ),
        "logistic": dict(own, kind="closed_form", method="logistic", penalty=10.0, train=dict(steps=0)),
        "centroid": dict(own, kind="closed_form", method="centroid", train=dict(steps=0)),
    }


def runs(chosen: list[str], domains: list[str], frozen: int) -> dict:
    """One run for each held-out domain and learner, the latter on what of the encoder is frozen."""
    found = {}
    for domain in domains or [""]:
        for learner in chosen:
            vectors = learner in VECTORS
            overrides = {"learner": learner, "data.backbone": "bert" if vectors or frozen else "none"}
            overrides["data.frozen_layers"] = 0 if vectors else frozen
            if domain:
                overrides["data.held_out"] = domain
            parts = [f"held_out={domain.replace(' ', '_')}"] if domain else []
            found[",".join([*parts, f"learner={learner}"])] = overrides
    return found
