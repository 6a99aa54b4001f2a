# SPDX-License-Identifier: Apache-2.0
"""The training loop: one jitted step, one loop over stages. There is no other in the project."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from metaicl import sharding
from metaicl.checkpoint import Checkpoints
from metaicl.episode import Array, PyTree, Source, Stage
from metaicl.learners.base import Learner, Meta
from metaicl.writer import Writer

FAILURE = ("failed_task", "failed_step")  # metrics that say where a step failed, and are not logged

NextStage = Callable[[list[dict]], Stage | None]


class NonFinite(FloatingPointError):
    """The loss or its gradient stopped being a number."""


class Batches(Protocol):
    """Host batches in order, with a position that can be stored (a Grain iterator)."""

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch."""

    def get_state(self) -> dict:
        """The position, as JSON."""

    def set_state(self, state: dict) -> None:
        """Goes to a position."""


@flax.struct.dataclass
class TrainState:
    """All that training moves. Every leaf but `step` has a leading axis R where there are replicas."""

    step: Array | np.ndarray
    meta: Meta
    opt_state: PyTree
    best: Meta
    best_score: Array
    best_step: Array


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When things happen, in steps. 0 for `validate_every` means never: the last parameters are the best."""

    batch: int
    log_every: int = 50
    checkpoint_every: int = 500
    validate_every: int = 0


class Hooks(NamedTuple):
    """What the loop calls back.

    Attributes:
      open_batches: `(source, batch size) -> Batches`.
      validate: `(meta of one replica, replica number) -> means`, among them `score`, which is maximised.
      after_stage: `(stage, metas of all replicas) -> what to remember of it`, kept in the history as JSON.
    """

    open_batches: Callable[[Source, int], Batches]
    validate: Callable[[Meta, int], dict[str, float]] | None = None
    after_stage: Callable[[Stage, list[Meta]], dict] | None = None


def listed(stages: Sequence[Stage]) -> NextStage:
    """The static case of `next_stage`: a list, one after another."""
    return lambda history: stages[len(history)] if len(history) < len(stages) else None


def train(
    learner: Learner,
    next_stage: NextStage,
    optimizer: optax.GradientTransformation,
    *,
    seeds: Sequence[int],
    replicas: Sequence[str] | None,
    schedule: Schedule,
    hooks: Hooks,
    mesh: Mesh,
    writer: Writer,
    checkpoints: Checkpoints | None = None,
) -> TrainState:
    """Trains a learner over stages, from its newest whole checkpoint if there is one.

    Args:
      learner: what is trained.
      next_stage: pure function of the history (a list of what finished stages left) to the next stage.
      optimizer: outer optimiser; sees one replica at a time (the whole step is vmapped).
      seeds: one seed per replica (just one without replicas); replica r equals a run alone with its seed.
      replicas: names of the replicas, or None to train one model without a replica axis. With replicas, the
        sources must come from `episode.replicate`.
      schedule, hooks, writer: see there.
      mesh: the devices that hold what comes in and goes out, metas for hooks included; those of them that can share
        a batch train (see `sharding.fitting`).
      checkpoints: where to save and resume; None neither saves nor resumes.

    Raises:
      NonFinite: when a loss or gradient is not finite; nothing is saved from then on.
      ValueError: for a batch that the devices of several processes cannot share.
    """
    part = sharding.fitting(mesh, schedule.batch, serial=learner.serial)
    loop = _Loop(learner, optimizer, seeds, replicas, schedule, hooks, part, mesh, writer, checkpoints)
    state, history, position = loop.start()
    writer.resume_at(int(state.step))
    try:
        while (stage := next_stage(history)) is not None:
            state, history = loop.run_stage(stage, state, history, position)
            position = None
    finally:
        writer.close()
        if checkpoints is not None:
            checkpoints.close()
    return loop.handed_out(state)


@dataclasses.dataclass(frozen=True)
class _Loop:
    learner: Learner
    optimizer: optax.GradientTransformation
    seeds: Sequence[int]
    replicas: Sequence[str] | None
    schedule: Schedule
    hooks: Hooks
    mesh: Mesh  # of the steps
    whole: Mesh  # of everything outside
    writer: Writer
    checkpoints: Checkpoints | None

    def start(self) -> tuple[TrainState, list[dict], dict | None]:
        """The initial state, or the newest checkpoint: (state, history, data position)."""
        make = functools.partial(init_state, self.learner, self.optimizer, stacked=self.replicas is not None)
        template = jax.jit(make, out_shardings=sharding.replicated(self.mesh))(
            _keys(self.seeds, self.replicas)[0]
        )
        restored = None if self.checkpoints is None else self.checkpoints.restore_latest(template)
        if restored is None:
            return template, [], None
        _, state, notes = restored
        return state, notes["history"], notes["position"]

    def run_stage(self, stage: Stage, state: TrainState, history: list[dict], position: dict | None):
        """Trains to the end of `stage`; returns the state and the history with the stage in it."""
        if stage.steps < 1:
            raise ValueError(f"Stage {stage.name!r} has {stage.steps} steps; give it at least 1.")
        begin = sum(done["steps"] for done in history)
        if stage.reset_optimizer and int(state.step) == begin:
            state = self._reset_optimizer(state)
        batches = self.hooks.open_batches(stage.source, self.schedule.batch)
        if position is not None:
            batches.set_state(position)
        consts = sharding.put_replicated(self.mesh, stage.source.consts)
        step = _jitted_step(
            self.learner, self.optimizer, stage.source.build, _frozen(stage.source, self.replicas), self.mesh
        )
        keys = _keys(self.seeds, self.replicas)[1]
        pending: list[dict] = []
        for number in range(int(state.step) + 1, begin + stage.steps + 1):
            batch = sharding.put_batch(self.mesh, next(batches))
            meta, opt_state, values = step(
                state.meta, state.opt_state, consts, batch, keys, np.int32(number - 1)
            )
            state = dataclasses.replace(
                state, step=np.asarray(number, np.int32), meta=meta, opt_state=opt_state
            )
            pending.append(values)
            last = number == begin + stage.steps
            state = self._report(stage, state, number, pending, last)
            if last:
                remembered = (
                    self.hooks.after_stage(stage, self.metas(state)) if self.hooks.after_stage else {}
                )
                done = {"stage": stage.name, "steps": stage.steps, "result": remembered}
                history = [*history, json.loads(json.dumps(done))]  # as a resumed run reads it
            if self.checkpoints is not None and (last or number % self.schedule.checkpoint_every == 0):
                where = None if last else batches.get_state()
                self.checkpoints.save(number, state, {"history": history, "position": where})
        return state, history

    def metas(self, state: TrainState, best: bool = False) -> list[Meta]:
        """One `Meta` per replica, without the replica axis."""
        meta = self.handed_out(state.best if best else state.meta)
        if self.replicas is None:
            return [meta]
        return [jax.tree.map(lambda a, r=r: a[r], meta) for r in range(len(self.replicas))]

    def handed_out(self, tree: PyTree) -> PyTree:
        """The tree on every device outside of the steps."""
        return tree if self.mesh == self.whole else sharding.put_replicated(self.whole, tree)

    def _report(self, stage, state, number, pending, last) -> TrainState:
        s = self.schedule
        saves = self.checkpoints is not None and number % s.checkpoint_every == 0
        if last or saves or number % s.log_every == 0:
            self._flush(stage, number, pending)
        else:
            self.writer.advance(number)
        if s.validate_every and self.hooks.validate and (last or number % s.validate_every == 0):
            return self._validate(stage, state, number)
        if not s.validate_every and (last or saves):
            # A copy: the next step gives the buffers of meta away.
            best = jax.tree.map(jnp.copy, state.meta)
            return dataclasses.replace(state, best=best, best_step=jnp.full_like(state.best_step, number))
        return state

    def _flush(self, stage, number, pending) -> None:
        """Fetches the metrics since the last time in one transfer, checks them and logs their means."""
        names = self.replicas or [""]
        fetched = jax.device_get(pending)
        table = {
            k: np.stack([np.atleast_1d(values[k]) for values in fetched]) for k in fetched[0]
        }  # [steps, R]
        for name in ("loss", "grad_norm"):
            if name not in table:  # a learner that needs no queries may have none
                continue
            bad = np.argwhere(~np.isfinite(table[name]))
            if len(bad):
                step, replica = number - len(pending) + 1 + bad[0][0], names[bad[0][1]]
                where = {k: int(table[k][tuple(bad[0])]) for k in FAILURE if k in table}
                raise NonFinite(self._nonfinite_text(name, step, replica, where))
        means = {k: column.mean(0) for k, column in table.items() if k not in FAILURE}
        for r, replica in enumerate(names):
            values = {k: column[r] for k, column in means.items()}
            self.writer.write(number, "train", values, replica=replica, stage=stage.name)
        shown = {k: means[k].mean() for k in ("loss", "accuracy") if k in means}
        self.writer.advance(number, **shown)
        pending.clear()

    def _nonfinite_text(self, name, step, replica, where: dict[str, int] | None = None) -> str:
        saved = None if self.checkpoints is None else self.checkpoints.latest_step()
        kept = (
            "No checkpoint was written before it"
            if saved is None
            else f"The checkpoint of step {saved} is kept"
        )
        of = f" of replica {replica!r}" if replica else ""
        remedy = "Lower the learning rate (train.learning_rate) or clip more (train.clip)"
        if where and where["failed_step"]:
            remedy = self.learner.failure.format(task=where["failed_task"], step=where["failed_step"])
        return f"The {name} is not finite at step {step}{of}. {kept}. {remedy}."

    def _validate(self, stage, state, number) -> TrainState:
        scores = []
        assert self.hooks.validate is not None
        for r, meta in enumerate(self.metas(state)):
            values = self.hooks.validate(meta, r)
            replica = self.replicas[r] if self.replicas else ""
            if not np.isfinite(values["score"]):
                raise NonFinite(self._nonfinite_text("validation score", number, replica))
            scores.append(values["score"])
            shown = {k: v for k, v in values.items() if k != "score"}
            self.writer.write(number, "validation", shown, replica=replica, stage=stage.name)
        stacked = jnp.asarray(scores if self.replicas else scores[0], jnp.float32)
        return _keep_best(state, stacked)

    def _reset_optimizer(self, state):
        init = jax.vmap(self.optimizer.init) if self.replicas else self.optimizer.init
        fresh = jax.jit(lambda params: _strong(init(params)), out_shardings=sharding.replicated(self.mesh))
        return dataclasses.replace(state, opt_state=fresh(state.meta.params))


def init_state(
    learner: Learner, optimizer: optax.GradientTransformation, key: Array, *, stacked: bool
) -> TrainState:
    """The state before the first step; `key` is `[R]` keys if `stacked`, else one key."""

    def one(key):
        meta = learner.init(key)
        return meta, optimizer.init(meta.params), jnp.float32(-jnp.inf), jnp.int32(0)

    meta, opt_state, score, step = (jax.vmap(one) if stacked else one)(key)
    meta, opt_state = _strong((meta, opt_state))
    return TrainState(jnp.int32(0), meta, opt_state, jax.tree.map(jnp.copy, meta), score, step)


def _strong(tree: PyTree) -> PyTree:
    """Without weakly typed scalars, which would make the second step's types new, and compile it again."""
    return jax.tree.map(lambda a: jax.lax.convert_element_type(a, a.dtype), tree)


def initial(learner: Learner, seed: int) -> Meta:
    """What a replica of this seed starts from."""
    return jax.jit(learner.init)(_keys([seed], None)[0])


def update_step(learner: Learner, optimizer: optax.GradientTransformation, build: Callable) -> Callable:
    """`(meta, opt_state, consts, batch, key, step) -> (meta, opt_state, metrics)`: one step of one model."""

    def step_fn(meta, opt_state, consts, batch, key, step):
        build_key, grad_key = jax.random.split(jax.random.fold_in(key, step))
        episodes, _ = build(consts, batch, build_key)
        grads, carry, values = learner.meta_grad(meta, episodes, grad_key, step)
        values = values | {"grad_norm": optax.tree.norm(grads)}
        updates, opt_state = optimizer.update(grads, opt_state, meta.params)
        return Meta(optax.apply_updates(meta.params, updates), carry), opt_state, values

    return step_fn


@functools.lru_cache(maxsize=32)
def _jitted_step(learner, optimizer, build, const_axes, mesh):
    """The compiled step; runs whose parts are the same objects share one program."""
    step_fn = update_step(learner, optimizer, build)
    if const_axes is not None:
        treedef, axes = const_axes
        step_fn = jax.vmap(step_fn, in_axes=(0, 0, treedef.unflatten(axes), 1, 0, None))
    same, split = sharding.replicated(mesh), sharding.by_episode(mesh)
    return jax.jit(
        step_fn, in_shardings=(same, same, same, split, same, same), out_shardings=same, donate_argnums=(0, 1)
    )


def _frozen(source: Source, replicas) -> tuple | None:
    """`const_axes` in hashable form; None without replicas."""
    if replicas is None:
        return None
    treedef = jax.tree.structure(source.consts)
    return treedef, tuple(jax.tree.leaves(source.const_axes, is_leaf=lambda axis: axis is None))


def _keys(seeds: Sequence[int], replicas) -> tuple[Array, Array]:
    """Keys for initial parameters and for steps: `[R]` with replicas, else scalar."""

    def pair(seed):
        both = jax.random.split(jax.random.key(seed))
        return both[0], both[1]

    if replicas is None:
        return pair(seeds[0])
    return jax.vmap(pair)(jnp.asarray(seeds, jnp.uint32))


@jax.jit
def _keep_best(state: TrainState, scores: Array) -> TrainState:
    """Remembers the parameters of every replica whose score is at least its best so far."""
    better = scores >= state.best_score

    def choose(new, old):
        return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - better.ndim)), new, old)

    return dataclasses.replace(
        state,
        best=jax.tree.map(choose, state.meta, state.best),
        best_score=choose(scores, state.best_score),
        best_step=choose(jnp.broadcast_to(state.step, better.shape), state.best_step),
    )
