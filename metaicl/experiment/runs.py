# SPDX-License-Identifier: Apache-2.0
"""One run: a learner trained (or not) on a problem, evaluated beside its baselines."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from metaicl import sharding
from metaicl.checkpoint import Checkpoints, load_weights, save_weights
from metaicl.configuration import ConfigError, as_json, differences, overridden
from metaicl.data.pipeline import open_batches
from metaicl.episode import Episode, Source, Stage, TaskSpec, host_batch
from metaicl.evaluate import evaluate, mean_score
from metaicl.experiment import sequential
from metaicl.experiment.comparing import check_comparisons, comparisons
from metaicl.experiment.functions import check_curriculum, told
from metaicl.experiment.measuring import Measurement
from metaicl.experiment.probing import probe_records, probed_weights, probes, probes_of
from metaicl.experiment.problems import Problem, make_problem
from metaicl.experiment.recording import evaluations, fits, identity, placed, records, started_with
from metaicl.files import write_text
from metaicl.learners import Learner, Meta, make_learner
from metaicl.train import Hooks, Schedule, TrainState, listed, train
from metaicl.writer import Writer

# Keys of a learner's entry that its constructor does not take.
NOT_SETTINGS = ("kind", "train", "test", "variants", "sweep")


def constructor_settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a learner's entry in a config gives its constructor, as it trains."""
    return {key: value for key, value in entry.items() if key not in NOT_SETTINGS}


class Replica(NamedTuple):
    """One of the models that a run trains side by side: its name, config and problem."""

    name: str
    config: ConfigDict
    problem: Problem


@dataclasses.dataclass(frozen=True)
class Run:
    """A named run and everything it needs; building it checks its config before any long work.

    Attributes:
      name: name of the run and of its folder.
      config: of the run, overrides applied.
      folder: where its outputs go.
      mesh: the devices.
      replicas: at least one; its name is "" where the run has none.
    """

    name: str
    config: ConfigDict
    folder: pathlib.Path
    mesh: Mesh
    replicas: tuple[Replica, ...]

    @property
    def finished(self) -> bool:
        """Whether its records are there: they are written last, at once."""
        return (self.folder / "records.jsonl").exists()

    @property
    def seeds(self) -> list[int]:
        """One seed per replica."""
        return [r.config.seed for r in self.replicas]

    @property
    def replica_names(self) -> list[str] | None:
        """Names of the replicas, or None where the run has none."""
        return [r.name for r in self.replicas] if self.config.replicas else None

    def learner(
        self, name: str, settings: Mapping[str, Any] | None = None, *, of: Replica | None = None
    ) -> Learner:
        """The learner called `name` in the config as it trains; or as it is tested, with `settings` on top.

        `of` is the replica whose learner it is, where replicas may differ in it (`make_run`).
        """
        entries = (of or self).config.learners
        if name not in entries:
            raise ConfigError(f"The config has no learner {name!r}; there are {', '.join(entries)}.")
        entry = as_json(entries[name])
        chosen = constructor_settings(entry)
        if settings is not None:
            chosen |= entry.get("test", {}) | dict(settings)
        spec = self.replicas[0].problem.spec
        try:
            return _memoised_learner(entry["kind"], spec, json.dumps(chosen, sort_keys=True))
        except ValueError as error:
            raise ConfigError(f"Learner {name!r} of the config: {error}") from error


def make_run(name: str, config: ConfigDict, folder: pathlib.Path, mesh: Mesh) -> Run:
    """Builds a run, its problems and its learners, so that what is wrong with them is said at once."""
    place = sharding.placer(mesh)
    if config.evaluate.select not in ("best", "last"):
        raise ConfigError(
            f"evaluate.select is {config.evaluate.select!r}; use 'best' (in validation) or 'last'."
        )
    if "sequence" in config:
        sequential.check_settings(config, training_of(config, config.learner))
    variants = dict(config.replicas) or {"": {}}
    replicas = []
    for replica, overrides in variants.items():
        variant = overridden(config, overrides)
        replicas.append(Replica(replica, variant, make_problem(variant, place)))
    specs = {replica.problem.spec for replica in replicas}
    if len(specs) > 1:
        raise ConfigError(f"The replicas of run {name!r} have tasks of different shapes: {specs}.")
    for replica in replicas:
        if replica.config.learners[config.learner] != config.learners[config.learner]:
            raise ConfigError(
                f"Replica {replica.name!r} of run {name!r} sets learners.{config.learner} to something of its own, but "
                "replicas train as one program: make it a run."
            )
    run = Run(name, config, folder, mesh, tuple(replicas))
    check_comparisons(run)
    check_curriculum(config, training_of(config, config.learner).batch)
    if "sequence" in config:
        sequential.check_sequence(run, training_of(config, config.learner))
    for learner in (config.learner, *config.baselines):
        _try_out(run, learner)
    return run


def _try_out(run: Run, name: str) -> None:
    """Traces, on the shapes of this run, what it will do with a learner; what does not fit is said here."""
    problem = run.replicas[0].problem
    meta = jax.eval_shape(run.learner(name).init, jax.random.key(0))
    t = training_of(run.config, name)
    if start := started_with(run.config, name):
        if t.steps:
            raise ConfigError(f"start={start}: weights are tested as they are; set train.steps to 0.")
        load_weights(start, meta)  # refuses what does not fit
    if run.config.data.get("split", "") == "none" and t.steps:
        raise ConfigError("data.split='none' tests all there is: set train.steps to 0.")
    try:
        if t.steps and (
            name == run.config.learner or run.config.learners[name].get("train", {}).get("steps")
        ):
            sharding.fitting(run.mesh, t.batch, serial=run.learner(name).serial)
            train_shapes = _episode_shapes(problem.train(run.replicas[0].config.seed), t.batch)
            _traced(run.learner(name).meta_grad, meta, train_shapes)
        for held in problem.test[:1]:
            episodes = _episode_shapes(held.source, 1)
            for evaluation in evaluations(run.config, name, held):
                _traced(run.learner(name, evaluation.settings).adapt, meta, episodes, of="support")
            for probe in probes_of(run, run.replicas[0], name).values() if meta.params else ():
                jax.eval_shape(jax.vmap(probe, in_axes=(None, 0)), probed_weights(meta), episodes)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"Learner {name!r} of the config: {error}") from error


def _episode_shapes(source: Source, batch: int) -> Episode:
    """Shapes and types of a batch of episodes."""
    part = host_batch(source, range(batch))
    return jax.eval_shape(source.build, source.consts, part, jax.random.key(0))[0]


def _traced(function, meta, episodes: Episode, of: str = "") -> None:
    """Traces `adapt` on a support (`of="support"`, without the axis B) or `meta_grad`, once per shape."""
    tree = (meta, episodes)
    leaves, treedef = jax.tree.flatten(tree)
    _trace_once(function, treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves), of)


@functools.lru_cache
def _trace_once(function, treedef, shapes, of) -> None:
    leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    meta, episodes = jax.tree.unflatten(treedef, leaves)
    if of == "support":
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), episodes.support)
        jax.eval_shape(function, meta, one, jax.random.key(0))
    else:
        jax.eval_shape(function, meta, episodes, jax.random.key(0), jax.ShapeDtypeStruct((), np.int32))


def execute(run: Run) -> None:
    """Trains, evaluates and records; an interrupted run goes on from its newest checkpoint."""
    check_folder(run)
    if jax.process_index() == 0:
        write_text(run.folder / "config.json", json.dumps(identity(run.config), indent=1, sort_keys=True))
    lines, curves = [], []
    state = _train_main(run)
    chosen = [_chosen(run, replica, state, number) for number, replica in enumerate(run.replicas)]
    for replica, (step, meta) in zip(run.replicas, chosen, strict=True):
        found = records(run, replica, run.config.learner, meta, step)
        found += probe_records(run, replica, run.config.learner, meta, step)
        lines += placed(found, run.config.learner, [replica.config])
        curves += fits(run, replica, run.config.learner, meta)
        _save_weights(run, replica, meta)
    lines += comparisons(run, chosen)
    if "sequence" in run.config:
        lines += sequential.finish(run)
    for name in run.config.baselines:
        for sharing in _sharing_problems(run, name):
            replica = sharing[0]
            meta, step = _fit_baseline(run, name, replica)
            found = records(run, replica, name, meta, step) + probe_records(run, replica, name, meta, step)
            lines += placed(found, name, [other.config for other in sharing])
            curves += fits(run, replica, name, meta)
    if curves and jax.process_index() == 0:
        write_text(run.folder / "fits.json", json.dumps(curves))
    if jax.process_index() == 0:
        write_text(run.folder / "records.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _chosen(run: Run, replica: Replica, state: TrainState | None, number: int) -> tuple[int, Meta]:
    """The step and the parameters that are tested: the best in validation, or with `evaluate.select` the last."""
    if state is None:
        return 0, _initial(run, run.config.learner, replica)
    if run.config.evaluate.select == "last":
        return int(state.step), _unstacked(run, state.meta, number)
    return int(np.atleast_1d(state.best_step)[number]), _unstacked(run, state.best, number)


def check_folder(run: Run | Measurement) -> None:
    """Refuses a folder that holds a run of another config, be it finished or not."""
    path = run.folder / "config.json"
    changed = differences(json.loads(path.read_text()), identity(run.config)) if path.exists() else []
    if sharding.agreed(len(changed)):
        shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise ConfigError(
            f"{run.folder} holds a run of another config ({shown}). "
            "Choose another --workdir, or delete that folder."
        )


def training_of(config: ConfigDict, name: str) -> ConfigDict:
    """The `train` part of the config with the learner's own overrides."""
    return overridden(config.train, config.learners[name].get("train", {}))


@functools.lru_cache
def _memoised_learner(kind: str, spec: TaskSpec, settings: str) -> Learner:
    """Equal settings give the same object, so that folds share their compiled programs."""
    return make_learner(kind, spec, **told(json.loads(settings), spec))


@functools.lru_cache
def make_optimizer(
    name: str, learning_rate: float, steps: int, warmup: int, decay: str, clip: float, weight_decay: float
) -> optax.GradientTransformation:
    """The outer optimiser: global-norm clipping (0: none), then Adam or SGD on a warmed-up schedule.

    Args:
      name: `adam` (decoupled weight decay) or `sgd`.
      learning_rate: its largest value.
      steps, warmup: of the whole training, and of the linear rise from 0.
      decay: `cosine` or `linear` to 0, or `none`.
      clip: largest global norm of the gradient of one replica.
      weight_decay: for `adam`.
    """
    span = max(steps - warmup, 1)
    tails = {
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, span),
        "linear": lambda: optax.linear_schedule(learning_rate, 0.0, span),
        "none": lambda: optax.constant_schedule(learning_rate),
    }
    if decay not in tails or name not in ("adam", "sgd"):
        raise ConfigError(
            f"train.optimizer={name!r}, train.decay={decay!r}: use adam or sgd, and {', '.join(tails)}."
        )
    rise = optax.linear_schedule(0.0, learning_rate, max(warmup, 1))
    schedule = optax.join_schedules([rise, tails[decay]()], [warmup]) if warmup else tails[decay]()
    rule = optax.adamw(schedule, weight_decay=weight_decay) if name == "adam" else optax.sgd(schedule)
    return optax.chain(optax.clip_by_global_norm(clip), rule) if clip else rule


def _optimizer(t: ConfigDict, span: int) -> optax.GradientTransformation:
    """The optimiser of a `train` part, its schedule over `span` steps."""
    return make_optimizer(t.optimizer, t.learning_rate, span, t.warmup, t.decay, t.clip, t.weight_decay)


def _train_main(run: Run) -> TrainState | None:
    """Trains the run's learner, all replicas side by side; None if it takes no training."""
    t = training_of(run.config, run.config.learner)
    if not t.steps:
        return None
    validate = functools.partial(_validate, run)
    in_stages = "sequence" in run.config
    plan = sequential.make_plan(run, t.steps, validate) if in_stages else sequential.one_stage(run, t.steps)
    validates = t.validate_every and all(r.problem.validation for r in run.replicas)
    schedule = Schedule(t.batch, t.log_every, t.checkpoint_every, t.validate_every if validates else 0)
    first = jax.process_index() == 0
    return train(
        run.learner(run.config.learner),
        plan.next_stage,
        _optimizer(t, plan.span),
        seeds=run.seeds,
        replicas=run.replica_names,
        schedule=schedule,
        hooks=Hooks(_open_batches, validate, plan.after_stage),
        mesh=run.mesh,
        writer=Writer(run.folder if first else None, total=plan.total, title=run.name),
        checkpoints=Checkpoints(run.folder / "checkpoints"),
    )


def _fit_baseline(run: Run, name: str, replica: Replica) -> tuple[Meta, int]:
    """A baseline's `Meta`: as initialised, or trained for the steps of its own `train` entry."""
    own = run.config.learners[name].get("train", {})
    if not own.get("steps", 0):
        return _initial(run, name, replica), 0
    t = training_of(run.config, name)
    state = train(
        run.learner(name, of=replica),
        listed([Stage("main", replica.problem.train(replica.config.seed), t.steps)]),
        _optimizer(t, t.steps),
        seeds=[replica.config.seed],
        replicas=None,
        schedule=Schedule(t.batch, t.log_every),
        hooks=Hooks(_open_batches),
        mesh=run.mesh,
        writer=Writer(None, total=None, title=name),
    )
    return state.best, t.steps


def _open_batches(source, batch):
    return open_batches(source, batch, process=jax.process_index(), processes=jax.process_count())


def _initial(run: Run, name: str, replica: Replica) -> Meta:
    init, key = run.learner(name, of=replica).init, jax.random.key(replica.config.seed)
    start = started_with(run.config, name)
    return load_weights(start, jax.eval_shape(init, key)) if start else jax.jit(init)(key)


def _unstacked(run: Run, meta: Meta, number: int) -> Meta:
    return jax.tree.map(lambda a: a[number], meta) if run.replica_names else meta


def _sharing_problems(run: Run, name: str) -> list[list[Replica]]:
    """The replicas, those together to which a baseline is the same: all that differ in their seeds only.

    To a baseline that is not trained, problems with the same test sets are one.
    """
    trained = run.config.learners[name].get("train", {}).get("steps", 0)
    groups: dict[tuple[int, str], list[Replica]] = {}
    for replica in run.replicas:
        entry = json.dumps(as_json(replica.config.learners[name]), sort_keys=True)
        groups.setdefault((id(replica.problem if trained else replica.problem.test), entry), []).append(
            replica
        )
    return list(groups.values())


def _validate(run: Run, meta: Meta, number: int) -> dict[str, float]:
    """Means over the validation sets of one replica, every set counting the same."""
    replica, e = run.replicas[number], run.config.evaluate
    learner, spec = run.learner(run.config.learner, {}), replica.problem.spec
    each = [
        evaluate(spec, learner, meta, held.source, range(e.validation_episodes), batch=e.batch)["values"]
        for held in replica.problem.validation
    ]
    means = [mean_score(spec, values) for values in each]
    for mean, held in zip(means, replica.problem.validation, strict=True):
        found = probes(run, replica, run.config.learner, meta, held, e.validation_episodes)
        mean.update({k: float(np.mean(v)) for values in found.values() for k, v in values.items()})
    return {name: float(np.mean([m[name] for m in means])) for name in means[0]}


def _save_weights(run: Run, replica: Replica, meta: Meta) -> None:
    """The selected parameters as one safetensors file, to load elsewhere."""
    if jax.process_index() == 0 and jax.tree.leaves(meta):
        suffix = f"-{replica.name}" if replica.name else ""
        save_weights(run.folder / f"weights{suffix}.safetensors", meta)
