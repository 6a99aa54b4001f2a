# SPDX-License-Identifier: Apache-2.0
"""The non-causal in-context Transformer: GEOM (arXiv 2507.05019) and CAML (Fifty et al., ICLR 2024).

A support item becomes a token of its image and label, a query a token of its image and a learned "unknown"
slot; nothing marks positions, so the support is a set. Three kinds of attention, which are different functions:

  joint   one sequence per query: the support attends to that query too (GEOM, CAML).
  packed  the support attends to itself only; each query attends to the support and to itself. All queries
          share one pass over the support, whose keys and values `adapt` caches.
  causal  as packed, but an item of the support sees only those before it, as in a causal language model: what is
          learned then depends on their order.

Two read-outs. `linear` is GEOM's head: N outputs at the query's position. `matching` lets the query attend
over the support's labels (Vinyals et al. 2016, equation 1); with `labels="relation"` (heads are told which
support items share a class, never a slot number) the learner is exactly equivariant to relabelling, no
parameter depends on N, and one trained learner answers any number of ways.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metaicl.episode import TaskSpec
from metaicl.learners.base import Learner, Meta, episodic_meta_grad
from metaicl.models.encoders import make_encoder
from metaicl.models.linear import init_linear, linear
from metaicl.models.transformer import make_transformer

_NEVER = -1e9

# The published shape: 2304 = 2048 image + 256 label; 283,323,649 trainable parameters for 5 ways.
GEOM = dict(
    encoder="identity",
    image_width=None,
    label_width=256,
    fusion="concat",
    labels="learned",
    attention="joint",
    readout="linear",
    layers=8,
    heads=8,
    mlp=3072,
)


def geom(spec: TaskSpec, **settings) -> Learner:
    """`in_context` in the exact shape of GEOM, on frozen 2048-dimensional features; settings override."""
    return in_context(spec, **(GEOM | settings))


def in_context(
    spec: TaskSpec,
    *,
    encoder: str = "identity",
    encoder_settings: dict | None = None,
    image_width: int | None = 192,
    label_width: int = 64,
    fusion: Literal["concat", "sum"] = "concat",
    labels: Literal["learned", "simplex", "relation"] = "learned",
    attention: Literal["joint", "packed", "causal"] = "packed",
    readout: Literal["linear", "matching"] = "linear",
    layers: int = 2,
    heads: int = 4,
    mlp: int = 512,
    start: Literal["random", "features"] = "random",
    dtype: str = "float32",
    remat: bool = False,
) -> Learner:
    """Builds the learner.

    Args:
      spec: classify, or regress with `readout="linear"` (labels are then mapped linearly).
      encoder: name of the encoder of items, trained with the rest; `encoder_settings` are its settings.
      image_width: width of the linear map behind the encoder; None for no map.
      label_width: width of a label code.
      fusion: concatenate image and label (width `image_width + label_width`) or sum them (equal widths).
      labels: `learned` table, fixed `simplex` (equal-length, maximally equiangular codes: ELMES), or
        `relation` (no codes: attention is biased by "same class" and "other class").
      attention, readout: see the module docstring.
      layers, heads, mlp: shape of the Transformer.
      start: `features` (with `readout="matching"`) begins as a classifier by the cosine of the items' features: the
        maps in front of and behind the blocks keep angles, and the blocks add nothing until they are trained. Good
        frozen features are then where training leaves from, and not what it has to find back to.
      dtype: compute dtype (`"bfloat16"` on accelerators); parameters stay float32.
      remat: recompute blocks in the backward pass, to save memory.

    Raises:
      ValueError: for settings that do not fit together.
    """
    if attention not in ("joint", "packed", "causal"):
        raise ValueError(f"attention is {attention!r}; use 'joint', 'packed' or 'causal'.")
    if start not in ("random", "features") or (start == "features" and readout != "matching"):
        raise ValueError(f"start is {start!r}; use 'random' or, with readout='matching', 'features'.")
    parts = _parts(
        spec, encoder, encoder_settings or {}, image_width, label_width, fusion, labels, readout, dtype
    )
    shape = dict(width=parts.width, layers=layers, heads=heads, mlp=mlp)
    transformer = make_transformer(**shape, dtype=dtype, remat=remat)

    def init(key):
        keys = jax.random.split(key, 3)
        params = {"transformer": transformer.init(keys[0])} | parts.init(keys[1])
        if labels == "relation":
            params["relation"] = jnp.zeros((2, layers, heads))  # other class, same class
        return Meta(params if start == "random" else _from_features(params, keys[2]))

    if attention == "joint":
        adapt, predict = _joint(spec, parts, transformer)
    else:
        adapt, predict = _packed(spec, parts, transformer, causal=attention == "causal")
    return Learner(
        init,
        adapt,
        predict,
        episodic_meta_grad(spec, adapt, predict),
        independent=parts.independent,
        relabelling=labels == "relation",
    )


def _from_features(params, key):
    """Initial parameters whose answers depend on the cosines of the items' features alone; see `in_context`."""
    keys = jax.random.split(key)
    changed = {
        "transformer": {
            name: block | {part: jax.tree.map(jnp.zeros_like, block[part]) for part in ("out", "mlp_out")}
            if name.startswith("blocks")
            else block
            for name, block in params["transformer"].items()
        },
        "readout": {
            **params["readout"],
            "query": _orthonormal(keys[0], params["readout"]["query"]),
            "key": _orthonormal(keys[0], params["readout"]["key"]),
        },
    }
    if "image" in params:
        changed["image"] = _orthonormal(keys[1], params["image"])
    return params | changed


def _orthonormal(key, layer):
    """A linear layer whose kernel `[n, m]` has orthonormal columns (n >= m) or rows, scaled to keep the mean square."""
    n, m = layer["kernel"].shape
    kernel = jax.nn.initializers.orthogonal(max(n / m, 1.0) ** 0.5)(key, (n, m))
    return jax.tree.map(jnp.zeros_like, layer) | {"kernel": kernel}


def _packed(spec, parts, transformer, causal):
    def adapt(meta, support, key):
        del key
        tokens = parts.support_tokens(meta.params, support)  # [S, D]
        real = support.mask > 0
        seen = jnp.tri(len(real), dtype=bool) if causal else jnp.ones((1, 1), bool)
        visible = (real[None, :] & seen) | jnp.eye(len(real), dtype=bool)
        outputs, cache = transformer.context(
            meta.params["transformer"], tokens, visible, _relation_bias(meta.params, spec, support)
        )
        return {"cache": cache, "outputs": outputs, "support": (support.y, real)}

    def predict(meta, state, x, mask):
        tokens = parts.query_tokens(meta.params, x, mask)  # [Q, D]
        y, real = state["support"]
        queries = transformer.extend(meta.params["transformer"], tokens, state["cache"], real)
        return parts.read(meta.params, queries, state["outputs"], y, real)

    return adapt, predict


def _joint(spec, parts, transformer):
    def adapt(meta, support, key):
        del key
        return {"tokens": parts.support_tokens(meta.params, support), "support": support}

    def predict(meta, state, x, mask):
        support, tokens = state["support"], state["tokens"]
        real = support.mask > 0
        queries = parts.query_tokens(meta.params, x, mask)
        context = jnp.broadcast_to(tokens, (len(queries), *tokens.shape))
        sequences = jnp.concatenate([queries[:, None], context], axis=1)  # [Q, 1 + S, D]
        visible = jnp.concatenate([jnp.ones(1, bool), real])[None, :] | jnp.eye(1 + len(real), dtype=bool)
        bias = _relation_bias(meta.params, spec, support)
        if bias is not None:
            bias = jnp.pad(bias, ((0, 0), (0, 0), (1, 0), (1, 0)))  # a query is of no known class
        every = 1 if parts.reads_support else sequences.shape[1]  # only the query's own token is read
        outputs, _ = transformer.context(meta.params["transformer"], sequences, visible, bias, every)
        read = jax.vmap(parts.read, in_axes=(None, 0, 0, None, None))
        return read(meta.params, outputs[:, :1], outputs[:, 1:], support.y, real)[:, 0]

    return adapt, predict


def _relation_bias(params, spec, support):
    """`[L, H, S, S]` attention bias by class membership, or None without the relation."""
    if "relation" not in params:
        return None
    same = (support.y[:, None] == support.y[None, :])[None, None]
    other_bias, same_bias = params["relation"][..., None, None]
    return jnp.where(same, same_bias, other_bias)


class _Parts(NamedTuple):
    """Tokens in, answers out: everything but the Transformer."""

    width: int
    independent: bool
    reads_support: bool
    init: Any
    support_tokens: Any
    query_tokens: Any
    read: Any


def _parts(
    spec, encoder, encoder_settings, image_width, label_width, fusion, labels, readout, dtype
) -> _Parts:
    net = make_encoder(encoder, spec.x_shape, dtype=dtype, **encoder_settings)
    width = _token_width(spec, image_width or net.width, label_width, fusion, labels, readout)

    def init(key):
        k = jax.random.split(key, 4)
        params = {"encoder": net.init(k[0])}
        if image_width is not None:
            params["image"] = init_linear(k[1], net.width, image_width)
        if labels != "relation":
            params["label"] = _init_labels(k[2], spec, label_width, labels)
        return params | {"readout": _init_readout(k[3], spec, width, readout)}

    def image(params, x, mask):
        features = net.apply(params["encoder"], x, mask)
        return linear(params["image"], features) if image_width is not None else features

    def fuse(x, label):
        return x + label if fusion == "sum" else jnp.concatenate([x, label], axis=-1)

    def support_tokens(params, support):
        x = image(params, support.x, support.mask)
        if labels == "relation":
            return x
        return fuse(x, _label_codes(params["label"], spec, label_width, labels, support.y).astype(x.dtype))

    def query_tokens(params, x, mask):
        x = image(params, x, mask)
        if labels == "relation":
            return x
        return fuse(x, jnp.broadcast_to(params["label"]["unknown"], (len(x), label_width)).astype(x.dtype))

    read = _read_linear if readout == "linear" else _read_matching(spec)
    return _Parts(width, net.independent, readout == "matching", init, support_tokens, query_tokens, read)


def _token_width(spec, image_width, label_width, fusion, labels, readout) -> int:
    """Checks that the settings fit together; the width of a token."""
    known = {
        "fusion": (fusion, ("concat", "sum")),
        "labels": (labels, ("learned", "simplex", "relation")),
        "readout": (readout, ("linear", "matching")),
    }
    for name, (value, choices) in known.items():
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; use one of {', '.join(choices)}.")
    if spec.kind == "regress" and (readout == "matching" or labels != "learned"):
        raise ValueError("Regression has no classes to match: use readout='linear' and labels='learned'.")
    if labels == "relation" and readout == "linear":
        raise ValueError("labels='relation' names no output slot: use readout='matching' with it.")
    if labels == "simplex" and not 2 <= spec.num_outputs <= label_width:
        raise ValueError(
            f"A simplex of {spec.num_outputs} label codes does not fit {label_width} dimensions."
        )
    if labels == "relation":
        return image_width
    if fusion == "sum" and image_width != label_width:
        raise ValueError(
            f"fusion='sum' needs equal widths, not {image_width} (image) and {label_width} (label)."
        )
    return image_width if fusion == "sum" else image_width + label_width


def _init_labels(key, spec, label_width, labels):
    params = {"unknown": jnp.zeros(label_width)}
    if spec.kind == "regress":
        return params | {"map": init_linear(key, spec.num_outputs, label_width)}
    params["scale"] = jnp.ones(())
    if labels == "learned":  # Kaiming-uniform with a = sqrt 5
        bound = label_width**-0.5
        params["table"] = jax.random.uniform(
            key, (spec.num_outputs, label_width), minval=-bound, maxval=bound
        )
    return params


def _label_codes(params, spec, label_width, labels, y):
    """Label codes `[S, label_width]` of slots `int [S]` or targets `float [S, N]`."""
    if spec.kind == "regress":
        return linear(params["map"], y)
    table = params["table"] if labels == "learned" else jnp.asarray(simplex(spec.num_outputs, label_width))
    return params["scale"] * table[y]


def simplex(n: int, width: int, seed: int = 0) -> np.ndarray:
    """n unit vectors in `width` dimensions, every two at the cosine -1/(n - 1): `float32 [n, width]`.

    The equal-length, maximally equiangular set (ELMES) of CAML: sqrt(n/(n-1)) (I - 11'/n), rotated by a
    seeded orthonormal basis.
    """
    centred = np.sqrt(n / (n - 1)) * (np.eye(n) - 1.0 / n)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, n)))
    return (centred @ basis.T).astype(np.float32)


def _init_readout(key, spec, width, readout):
    if readout == "linear":
        return init_linear(key, width, spec.num_outputs, bias=False)
    k = jax.random.split(key)
    projections = {
        "query": init_linear(k[0], width, width, bias=False),
        "key": init_linear(k[1], width, width, bias=False),
    }
    return projections | {"log_scale": jnp.log(jnp.float32(10.0))}


def _read_linear(params, queries, support, y, real):
    del support, y, real
    return linear(params["readout"], queries)


def _read_matching(spec):
    def read(params, queries, support, y, real):
        """Log of the attention that each class gets: `[Q, D], [S, D] -> [Q, N]`."""
        q = _unit(linear(params["readout"]["query"], queries))
        k = _unit(linear(params["readout"]["key"], support))
        similarity = jnp.exp(params["readout"]["log_scale"]) * (q @ k.T)  # [Q, S]
        member = (y[None, :] == jnp.arange(spec.num_outputs)[:, None]) & real[None, :]  # [N, S]
        scores = jnp.where(member[None], similarity[:, None, :], _NEVER)  # [Q, N, S]
        # The sentinel keeps a class without items, or an empty support, finite.
        scores = jnp.pad(scores, ((0, 0), (0, 0), (0, 1)), constant_values=_NEVER)
        return jax.nn.log_softmax(jax.nn.logsumexp(scores, axis=-1))

    return read


def _unit(x):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
