# SPDX-License-Identifier: Apache-2.0
"""Learning to learn without labels: pseudo-tasks of the training images, tested on a domain that was never seen.

The same learner is trained for as many steps on the same data sets, in ways that are the learners of the table:

  supervised   on labelled episodes, each of the classes of one data set (GEOM, arXiv 2507.05019)
  geom_u       on pseudo-tasks, each of the images of one data set (GEOM-U)
  camelu       on pseudo-tasks of the images of all data sets as one (CAMeLU, arXiv 2405.16124)
  strong       as geom_u, with nothing mixed into the queries: an ablation, if asked for

and beside them closed-form learners, which are not trained. A pseudo-task takes each of five images for a class: its
support is strong augmentations of it, its queries are others into which further images are mixed, see
`metaicl.data.pseudo_tasks`. Validation and test are labelled episodes of domains that training does not have.

    python -m metaicl.main --config=configs/unsupervised.py                    three domains of the embedded album
    python -m metaicl.main --config=configs/unsupervised.py:quick              one of them
    python -m metaicl.main --config=configs/unsupervised.py:tasks=geom_u+strong,held_out=plants
    python -m metaicl.main --config=configs/unsupervised.py:album=PATH,backbone=squeezenet,weights=PATH

With a backbone, training images are augmented, mixed and embedded in every step; the features of validation and test
are computed once. That pass takes most of the time, hence images of 64 pixels, unless `image_size` says otherwise.
`learner` is one of `configs/loo.py`, trained for `steps`. `full` holds out every domain, at the published length.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import ConfigError, load_config_file, named, separate

loo = load_config_file("loo", beside=__file__)

TASKS: dict[str, dict] = {
    "supervised": {},
    "geom_u": {"task.pseudo.draw_from": "data_set"},
    "camelu": {"task.pseudo.draw_from": "pool"},
    "strong": {"task.pseudo.draw_from": "data_set", "task.pseudo.mode": "strong"},
}


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = loo.parse(argument, tasks="supervised+geom_u+camelu", steps=0)
    frozen = arg.backbone != "none"
    chosen = arg.tasks.split("+")
    if unknown := [name for name in chosen if name not in TASKS]:
        raise ConfigError(f"tasks={unknown[0]!r} is not one of {', '.join(TASKS)} (join several with +).")
    config = ConfigDict()
    config.seed = 0
    config.data = defaults.chosen_album(arg, image_size=arg.image_size or (64 if frozen else 32))
    queries = 2 if arg.learner == "joint" else 5  # there every query is a sequence of its own
    config.task = defaults.classification(ways=5, shots=5, queries=queries, test_queries=5 if frozen else 10)
    config.task.pseudo = defaults.pseudo_tasks()
    trained, untrained = learner(arg, frozen), closed_form(frozen)
    config.learners = separate(dict.fromkeys(TASKS, trained) | untrained)
    config.learner, config.baselines = chosen[0], ()
    config.train = train(arg, frozen)
    config.evaluate = defaults.evaluation(
        episodes=60 if arg.quick else 600 if arg.full or arg.album != "embedded" else 200,
        batch=25,
        validation_episodes=20 if arg.quick else 50,
    )
    config.replicas = defaults.seeds(arg.seeds)
    config.runs = named(runs(arg, chosen, list(untrained)))
    return config


def length(arg: ConfigDict, frozen: bool) -> int:
    """Steps of training."""
    short, usual = (60, 200) if frozen else (150, 300)
    return arg.steps or (50_000 if arg.full else short if arg.quick else usual)


def train(arg: ConfigDict, frozen: bool) -> dict:
    """The schedule of all learners alike: Adam, clipped, warmed up, cosine to zero."""
    steps = length(arg, frozen)
    return defaults.training(
        steps=steps,
        batch=8 if frozen else 4,
        warmup=steps // 10,
        decay="cosine",
        clip=1.0,
        validate_every=max(steps // 4, 1),
    )


def learner(arg: ConfigDict, frozen: bool) -> dict:
    """The learner that is trained in every way, with its own rate where it has one."""
    entries = loo.frozen_learners(arg) if frozen else loo.pixel_learners()
    name = arg.learner or ("matching" if frozen else "in_context")
    if name not in entries:
        raise ConfigError(f"learner={name!r} is not one of {', '.join(entries)}.")
    steps = length(arg, frozen)
    return entries[name] | dict(train=entries[name].get("train", {}) | dict(steps=steps, warmup=steps // 10))


def closed_form(frozen: bool) -> dict:
    """The closed-form learners that need no training at all."""
    return {name: entry for name, entry in loo.closed_form(frozen).items() if not entry.get("whiten")}


def runs(arg: ConfigDict, chosen: list[str], untrained: list[str]) -> dict:
    """For every domain that is held out one run for each way of training, and one of the closed-form learners."""
    few = not (arg.full or arg.held_out)
    domains = list(dict.fromkeys(own["data.held_out"] for own in loo.runs(arg, ["in_context"], []).values()))
    domains = domains[:: -(-len(domains) // 3)][: 1 if arg.quick else 3] if few else domains
    result: dict = {}
    for domain in domains:
        name = f"held_out={domain.replace(' ', '_')}"
        for tasks in chosen:
            result[f"{name},tasks={tasks}"] = {"data.held_out": domain, "learner": tasks} | TASKS[tasks]
        first, *rest = untrained
        closed = {"data.held_out": domain, "learner": first, "baselines": tuple(rest), "train.steps": 0}
        result[f"{name},closed_form"] = closed
    return result
