# SPDX-License-Identifier: Apache-2.0
"""Learners with a closed form or a convex solution: the baselines that every table needs."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from metaicl.episode import Examples, TaskSpec
from metaicl.learners.base import Learner, Meta, no_meta_grad
from metaicl.learners.prototypes import class_means, distance_logits
from metaicl.models.encoders import make_encoder

Method = Literal["centroid", "knn", "ridge", "logistic"]


def closed_form(
    spec: TaskSpec,
    *,
    method: Method = "centroid",
    encoder: str = "identity",
    encoder_settings: dict | None = None,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    neighbours: int = 1,
    penalty: float = 1.0,
    intercept: bool = True,
    temperature: float = 1.0,
    whiten: bool = False,
    shrinkage: float = 0.1,
) -> Learner:
    """Builds the learner.

    Args:
      spec: classify; `knn` and `ridge` also regress.
      method: nearest class `centroid`, `knn`, `ridge` regression on one-hot labels, or `logistic` regression.
      encoder, encoder_settings: a fixed map in front (its initial weights are kept).
      metric: of `centroid` and `knn`.
      neighbours: of `knn`; votes are counted.
      penalty: of `ridge` (lambda in |Xw - y|^2 + lambda |w|^2, centred, features of root mean square about 1
        suit about their width) and `logistic` (lambda in the sum of losses + lambda/2 |W|^2).
      intercept: whether `ridge` has an unpenalised one (and centres); without, it goes through the origin, and
        where y = w.x + noise with w ~ N(0, I) it is Bayes-optimal at a penalty of the noise's variance.
      temperature: divides the answers; matters for probabilities, not for accuracy.
      whiten: whiten features by the within-class covariance of the training domains, which `meta_grad`
        accumulates in `carry` over the training episodes: train for as many steps as it needs data.
      shrinkage: weight of a multiple of the identity in that covariance.

    Raises:
      ValueError: for an unknown method or metric, or a classifier asked to regress.
    """
    if method not in _FITS:
        raise ValueError(f"Unknown method {method!r}; there are {', '.join(_FITS)}.")
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"metric is {metric!r}; use 'euclidean' or 'cosine'.")
    if spec.kind == "regress" and (method in ("centroid", "logistic") or whiten):
        raise ValueError(
            f"{'whiten=True' if whiten else repr(method)} needs classes: use ridge or knn for regression."
        )
    net = make_encoder(encoder, spec.x_shape, **(encoder_settings or {}))
    fit, solve = _FITS[method]
    settings = dict(
        kind=spec.kind, metric=metric, neighbours=neighbours, penalty=penalty, intercept=intercept
    )

    def init(key):
        # The encoder is not trained: it belongs to what is carried, not to what is differentiated.
        carry = {"encoder": net.init(key)}
        if whiten:
            carry["scatter"] = jnp.zeros((net.width, net.width))
            carry["degrees"] = jnp.zeros(())
        return Meta({}, carry)

    def features(meta, x, mask):
        h = net.apply(meta.carry["encoder"], x, mask)
        if not whiten:
            return h
        return h @ whitening(meta.carry["scatter"], meta.carry["degrees"], shrinkage).T

    def adapt(meta, support, key):
        del key
        h = features(meta, support.x, support.mask)
        y = support.y if spec.kind == "regress" else jax.nn.one_hot(support.y, spec.num_outputs)
        return fit(h, y.astype(h.dtype), support.mask, settings)

    def predict(meta, state, x, mask):
        return solve(state, features(meta, x, mask), settings) / temperature

    measure = no_meta_grad(spec, adapt, predict)

    def meta_grad(meta, episodes, key, step):
        grads, carry, values = measure(meta, episodes, key, step)
        if whiten:
            carry = _accumulate(spec, net, carry, episodes)
        return grads, carry, values

    return Learner(init, adapt, predict, meta_grad, net.independent, relabelling=spec.kind == "classify")


def _accumulate(spec, net, carry, episodes):
    """Adds the within-class scatter of a batch of episodes to the carry."""

    def one(episode):
        both = jax.tree.map(lambda *parts: jnp.concatenate(parts), episode.support, episode.query)
        h = net.apply(carry["encoder"], both.x, both.mask)
        return within_class_scatter(h, both, spec.num_outputs)

    scatter, degrees = jax.tree.map(lambda a: jnp.sum(a, axis=0), jax.vmap(one)(episodes))
    return carry | {"scatter": carry["scatter"] + scatter, "degrees": carry["degrees"] + degrees}


def within_class_scatter(h, examples: Examples, num_outputs: int):
    """Sum of outer products of deviations from the class means `[D, D]`, and its degrees of freedom."""
    deviation = (h - class_means(h, examples.y, examples.mask, num_outputs)[examples.y]) * examples.mask[
        :, None
    ]
    classes = jnp.sum(jax.nn.one_hot(examples.y, num_outputs).T @ examples.mask > 0)
    return deviation.T @ deviation, jnp.sum(examples.mask) - classes


def whitening(scatter, degrees, shrinkage: float):
    """`W [D, D]` such that `W h` is white: the inverse Cholesky factor of the shrunk within-class covariance.

    The covariance is first scaled to mean variance 1. White features are free up to a rotation, which no
    distance, ridge or logistic regression notices. Without any data yet W is the identity.
    """
    width = scatter.shape[0]
    covariance = scatter / jnp.maximum(degrees, 1.0)
    scale = jnp.trace(covariance) / width
    covariance = jnp.where(scale > 0, covariance / jnp.where(scale > 0, scale, 1.0), jnp.eye(width))
    root = jnp.linalg.cholesky((1 - shrinkage) * covariance + shrinkage * jnp.eye(width))
    # Inverted once and not per episode: vmap would copy the factor for every episode of a triangular solve.
    return jax.scipy.linalg.solve_triangular(root, jnp.eye(width), lower=True)


def _fit_centroid(h, y, mask, settings):
    del settings
    member = y.T * mask[None, :]
    return (member / jnp.maximum(member.sum(1, keepdims=True), 1.0)) @ h


def _solve_centroid(means, h, settings):
    return distance_logits(h, means, settings["metric"])


def _fit_knn(h, y, mask, settings):
    del settings
    return h, y, mask


def _solve_knn(state, h, settings):
    """Mean label of the neighbours; for classes its logarithm, with one vote shared by all classes."""
    support, y, mask = state
    closeness = jnp.where(mask[None, :] > 0, distance_logits(h, support, settings["metric"]), -jnp.inf)
    k = min(settings["neighbours"], len(mask))
    best, rows = jax.lax.top_k(closeness, k)  # [Q, k]
    vote = (best > -jnp.inf).astype(h.dtype)
    total = jnp.einsum("qk,qkn->qn", vote, y[rows])
    if settings["kind"] == "regress":
        return total / jnp.maximum(vote.sum(1), 1.0)[:, None]
    return jnp.log((total + 1.0 / y.shape[1]) / (vote.sum(1)[:, None] + 1.0))


def _fit_ridge(h, y, mask, settings):
    """Dual ridge regression over the real rows, with an unpenalised intercept or through the origin."""
    total = jnp.maximum(jnp.sum(mask), 1.0) if settings["intercept"] else jnp.inf
    h_mean, y_mean = (mask @ h) / total, (mask @ y) / total
    centred = (h - h_mean[None, :]) * mask[:, None]
    gram = centred @ centred.T + settings["penalty"] * jnp.eye(len(mask))
    dual = jax.scipy.linalg.solve(gram, (y - y_mean[None, :]) * mask[:, None], assume_a="pos")
    return centred.T @ dual, h_mean, y_mean


def _solve_ridge(state, h, settings):
    del settings
    weights, h_mean, y_mean = state
    return (h - h_mean[None, :]) @ weights + y_mean[None, :]


def _fit_logistic(h, y, mask, settings):
    """Multinomial logistic regression by damped Newton steps, in D or S coordinates, whichever are fewer.

    The optimal weights are combinations of support items, so with the eigenvectors of their Gram matrix
    the problem has S coordinates instead of D, and the same penalty. (With S > D that matrix is singular.)
    """
    mean = (mask @ h) / jnp.maximum(jnp.sum(mask), 1.0)
    centred = (h - mean[None, :]) * mask[:, None]
    present = jnp.any(y * mask[:, None] > 0, axis=0)
    present = present | ~jnp.any(present)
    if h.shape[1] <= len(mask):
        return *newton_logistic(centred, y, mask, present, settings["penalty"]), mean
    # Centred items are linearly dependent: directions without variance, down to rounding, are left out.
    variance, directions = jnp.linalg.eigh(centred @ centred.T)  # [S], [S, S]
    kept = variance > 1e-6 * jnp.max(variance, initial=1e-6)
    deviation = jnp.sqrt(jnp.where(kept, variance, 1.0))
    coordinates = directions * jnp.where(kept, deviation, 0.0)[None, :]  # [S, S], rows are the items
    weights, intercept = newton_logistic(coordinates, y, mask, present, settings["penalty"])
    back = directions * jnp.where(kept, 1.0 / deviation, 0.0)[None, :]
    return centred.T @ (back @ weights), intercept, mean


def _solve_logistic(state, h, settings):
    del settings
    weights, intercept, mean = state
    return (h - mean[None, :]) @ weights + intercept[None, :]


def newton_logistic(z, y, mask, present, penalty, steps: int = 20):
    """Minimises sum(mask * cross-entropy) + penalty/2 |W|^2 with a free intercept.

    Args:
      z: `[S, d]` coordinates. y: `[S, N]` one-hot. mask: `[S]`. present: `bool [N]` classes that take part.
      penalty: of the weights. steps: Newton steps, each with the best of a few step lengths.

    Returns:
      weights `[d, N]`, intercept `[N]`.
    """
    design = jnp.concatenate([z, jnp.ones((len(z), 1), z.dtype)], axis=1)  # [S, d + 1]
    shape = (design.shape[1], y.shape[1])
    penalise = _logistic_penalty(shape[0], present.astype(z.dtype), penalty)

    def log_p(w):
        return jax.nn.log_softmax(jnp.where(present[None, :], design @ w, -1e9))

    def objective(w):
        fit = -jnp.sum(mask[:, None] * y * jnp.where(present[None, :], log_p(w), 0.0))
        return fit + 0.5 * jnp.sum(w * penalise(w))

    def step(w, _):
        p = jnp.exp(log_p(w)) * mask[:, None]
        gradient = design.T @ (p - y * mask[:, None]) + penalise(w)
        direction = _newton_direction(design, p, penalise, gradient)
        lengths = jnp.array([1.0, 0.5, 0.25, 0.1, 0.02, 0.0], z.dtype)
        values = jax.vmap(lambda length: objective(w - length * direction))(lengths)
        # The longest of those that are best up to rounding: near the optimum the values no longer differ.
        best = jnp.min(values)
        rounding = 10 * jnp.finfo(z.dtype).eps * (1 + jnp.abs(best))
        return w - lengths[jnp.argmax(values <= best + rounding)] * direction, None

    w, _ = jax.lax.scan(step, jnp.zeros(shape, z.dtype), None, length=steps)
    return w[:-1], w[-1]


def _newton_direction(design, p, penalise, gradient):
    """The Newton direction by conjugate gradients: the matrix, of (d N)^2 numbers, is never formed."""

    def product(v):
        change = design @ v  # [S, N]
        weighted = p * (change - jnp.sum(p * change, axis=1, keepdims=True))
        return design.T @ weighted + penalise(v)

    return jax.scipy.sparse.linalg.cg(product, gradient, tol=1e-4, maxiter=100)[0]


def _logistic_penalty(d, present, penalty):
    """The quadratic penalty's matrix, as `[d, N] weights -> [d, N]`; the last row is the intercept.

    Present intercepts are free but for a whisper, absent ones stay at zero. A common shift of the intercepts
    changes no probability: pulling their sum to zero moves no optimum and stops rounding from drifting there.
    """
    diagonal = jnp.full((d, len(present)), penalty, present.dtype)
    diagonal = diagonal.at[-1].set(jnp.where(present > 0, 1e-6, 1.0))
    return lambda w: (diagonal * w).at[-1].add(present * jnp.sum(present * w[-1]))


_FITS = {
    "centroid": (_fit_centroid, _solve_centroid),
    "knn": (_fit_knn, _solve_knn),
    "ridge": (_fit_ridge, _solve_ridge),
    "logistic": (_fit_logistic, _solve_logistic),
}
