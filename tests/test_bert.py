# SPDX-License-Identifier: Apache-2.0
"""BERT against Hugging Face's own, its weights and what they refuse, and its additions that start as nothing."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from real_data import REAL_DATA
from text_data import (
    TINY,
    WORDS,
    cut_up,
    needs_pretrained,
    pretrained_folder,
    tiny_tensors,
    token_ids,
    write_model,
)

from metaicl.data.tokens import hashed_words, load_tokenizer, padded
from metaicl.models.bert import POOLINGS, Bert, BertShape, hidden_states
from metaicl.models.bert_encoder import lower_bert
from metaicl.models.bert_weights import read_config, weights_folder
from metaicl.models.encoders import make_encoder

LENGTHS = (1, 2, 5, 9, 16, 24)
SMALL = dict(vocabulary=40, width=16, layers=2, heads=2, hidden=32, positions=24)
ONE_LAYER = SMALL | dict(layers=1)


def ours(folder, ids, dtype="float32"):
    """Hidden states, the pooler's vector and the mean over real tokens."""
    net = make_encoder("bert", (ids.shape[1],), weights=str(folder), pool="pooler", dtype=dtype)
    params = jax.jit(net.init)(jax.random.key(0))
    module = Bert(read_config(folder)[1], True, 0, 0, 0, jnp.dtype(dtype), False)
    states, pooled = jax.jit(lambda p, x: hidden_states(module, p, x))(params, ids)
    means = make_encoder("bert", (ids.shape[1],), weights=str(folder), dtype=dtype)
    encoder = {name: part for name, part in params.items() if name != "pooler"}
    return states, pooled, means.apply(encoder, ids, jnp.ones(len(ids)))


def theirs(folder, ids):
    """The same of Hugging Face's network, in the mode without dropout."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    x = torch.tensor(np.asarray(ids), dtype=torch.long)
    with torch.no_grad():
        found = model(x, attention_mask=(x != 0).long(), output_hidden_states=True)
    return [state.numpy() for state in found.hidden_states], getattr(found, "pooler_output", None)


def assert_same(folder, ids, atol):
    states, pooled, means = ours(folder, ids)
    expected, pooler = theirs(folder, ids)
    real = np.asarray(ids != 0)
    assert len(states) == len(expected)
    for state, other in zip(states, expected, strict=True):
        np.testing.assert_allclose(np.asarray(state)[real], other[real], atol=atol)
    np.testing.assert_allclose(pooled, pooler.numpy(), atol=atol)
    by_hand = np.stack([other[: row.sum()].mean(0) for other, row in zip(expected[-1], real, strict=True)])
    np.testing.assert_allclose(means, by_hand, atol=atol)


@needs_pretrained
def test_pretrained_network_agrees_with_transformers_on_real_sentences():
    folder = pretrained_folder()
    told = json.loads((REAL_DATA / "text" / "clinc150_data_full.json").read_text())
    by_length = sorted({len(text.split()): text for text, _ in told["train"]}.items())
    sentences = [text for _, text in by_length] + [" ".join(text for text, _ in told["val"][:9])]
    assert len(by_length) > 20
    tokenizer = load_tokenizer(folder, vocabulary=30522, padding=0)
    ids, lengths, cut = padded(tokenizer.encode(sentences), 0, 128)
    transformers = pytest.importorskip("transformers")
    spelt = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)(sentences)
    assert cut == 0 and tokenizer.encode(sentences) == spelt["input_ids"]
    assert lengths.min() < 5 and lengths.max() > 64
    assert_same(folder, ids, 1e-4)


def test_small_network_agrees_with_transformers(tmp_path, rng):
    ids = token_ids(rng, LENGTHS)
    assert_same(write_model(tmp_path, tiny_tensors(rng)), ids, 2e-5)


def test_old_names_and_heads_of_whole_models_are_understood(tmp_path, rng):
    tensors, ids = tiny_tensors(rng), token_ids(rng, LENGTHS)
    old = lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta")
    renamed = {f"bert.{old(name)}": tensor for name, tensor in tensors.items()}
    renamed |= {"cls.predictions.bias": np.zeros(3, np.float32)}
    a = ours(write_model(tmp_path / "a", tensors), ids)
    b = ours(write_model(tmp_path / "b", renamed), ids)
    assert max(np.abs(x).max() for x in jax.tree.leaves(a)) > 0.5
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_distilbert_agrees_with_transformers(tmp_path, rng):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = dict(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=24)
    config = transformers.DistilBertConfig(**shape, initializer_range=0.3)
    transformers.DistilBertModel(config).save_pretrained(tmp_path)
    ids = token_ids(rng, LENGTHS)
    family, found = read_config(tmp_path)
    assert family == "distilbert" and (found.types, found.width, found.layers) == (0, 16, 2)
    net = make_encoder("bert", (24,), weights=str(tmp_path), pool="cls")
    expected, _ = theirs(tmp_path, ids)
    vectors = net.apply(net.init(jax.random.key(0)), ids, jnp.ones(len(ids)))
    np.testing.assert_allclose(vectors, expected[-1][:, 0], atol=2e-5)
    with pytest.raises(ValueError, match="no 'pooler'"):
        make_encoder("bert", (24,), weights=str(tmp_path), pool="pooler").init(jax.random.key(0))


@pytest.mark.slow
def test_padding_changes_nothing(rng):
    ids = token_ids(rng, (3, 7, 8))
    wide = np.pad(ids, ((0, 0), (0, 9)))
    nets = {how: make_encoder("bert", (24,), shape=ONE_LAYER, pool=how, prompts=2) for how in POOLINGS}

    @jax.jit
    def vectors(key):
        every = (ids, wide, np.zeros((1, 8), np.int32))
        moved = {how: noisy(net.init(key)) for how, net in nets.items()}
        return {how: [net.apply(moved[how], x, jnp.ones(len(x))) for x in every] for how, net in nets.items()}

    for how, (narrow, wider, empty) in vectors(jax.random.key(0)).items():
        np.testing.assert_allclose(narrow, wider, atol=1e-6, err_msg=how)
        assert np.abs(narrow[0] - narrow[1]).max() > 1e-3 and np.isfinite(empty).all()


def noisy(params, scale=0.3):
    """Parameters moved off every special value."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [a + scale * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return treedef.unflatten(moved)


# What is added, and the parameters of it that start at zero.
ADDED = {
    "adapter": ("adapter_up", dict(adapters=4)),
    "lora": ("up", dict(lora=2)),
    "prompts": ("gate", dict(prompts=3)),
}


@pytest.mark.slow
def test_additions_start_as_nothing_and_matter_once_they_move(rng):
    settings = {name: value for _, added in ADDED.values() for name, value in added.items()}
    plain = make_encoder("bert", (9,), shape=ONE_LAYER)
    more = make_encoder("bert", (9,), shape=ONE_LAYER, **settings)
    ids, mask = token_ids(rng, (4, 9, 6)), jnp.ones(3)

    @jax.jit
    def measured(key):
        start = more.init(key)
        moved = {kind: only(kind, noisy(start), start) for kind in ADDED}
        slopes = jax.grad(lambda p: jnp.sum(jnp.sin(more.apply(p, ids, mask))))(start)
        bare = plain.apply(without_additions(start), ids, mask)
        return (
            bare,
            more.apply(start, ids, mask),
            {k: more.apply(p, ids, mask) for k, p in moved.items()},
            slopes,
        )

    bare, same, moved, slopes = measured(jax.random.key(0))
    np.testing.assert_allclose(same, bare, atol=1e-6)
    layer = {path[0].key: np.any(g) for path, g in jax.tree.flatten_with_path(slopes["layer_0"])[0]}
    for kind, (zero, _) in ADDED.items():
        assert np.abs(moved[kind] - bare).max() > 1e-4, kind
        found = [differs for name, differs in layer.items() if kind in name and name.endswith(zero)]
        assert found and all(found), kind


def only(kind, moved, start):
    """The moved parameters where their name says `kind`, the others as they were."""
    picked = lambda path, a, b: a if any(kind in part.key for part in path) else b
    return jax.tree.map_with_path(picked, moved, start)


def without_additions(tree):
    if not isinstance(tree, dict):
        return tree
    return {k: without_additions(v) for k, v in tree.items() if not any(kind in k for kind in ADDED)}


def test_prompts_are_attention_behind_a_gate(rng, x64):
    """One layer's attention with prompts against the sums written out in NumPy, in float64."""
    net = make_encoder("bert", (5,), shape=ONE_LAYER, prompts=3, dtype="float64")
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    params = jax.tree.map(lambda a: rng.normal(0.1, 0.4, a.shape), shapes)
    ids = token_ids(rng, (5, 5))
    found = jax.jit(net.apply)(params, ids, jnp.ones(2))
    np.testing.assert_allclose(found, layer_by_hand(params, ids), atol=1e-10)


def layer_by_hand(params, ids):
    from scipy.special import erf

    norm = lambda x, p: (
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1) + 1e-12)[..., None] * p["scale"] + p["bias"]
    )
    dense = lambda x, p: x @ p["kernel"] + p["bias"]
    softmax = lambda a: np.exp(a) / np.exp(a).sum(-1, keepdims=True)
    e, p = params["embeddings"], params["layer_0"]
    result = []
    for sentence in ids:
        x = e["word"]["embedding"][sentence] + e["position"]["embedding"][: len(sentence)]
        x = norm(x + e["type"]["embedding"][0], e["norm"])
        q, k, v = (dense(x, p[name]) for name in ("query", "key", "value"))
        pk, pv = (dense(p["prompts_vectors"], p[name]) for name in ("key", "value"))
        heads = []
        for h in range(2):
            at = slice(8 * h, 8 * h + 8)
            own = softmax(q[:, at] @ k[:, at].T / np.sqrt(8)) @ v[:, at]
            beside = softmax(q[:, at] @ pk[:, at].T / np.sqrt(8)) @ pv[:, at]
            heads.append(own + np.tanh(p["prompts_gate"][h]) * beside)
        x = norm(x + dense(np.concatenate(heads, -1), p["attention_out"]), p["attention_norm"])
        inner = dense(x, p["feed_forward_in"])
        inner = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))
        x = norm(x + dense(inner, p["feed_forward_out"]), p["output_norm"])
        result.append(x.mean(0))
    return np.stack(result)


def test_rematerialised_layers_give_the_same_gradient(rng):
    ids, mask = token_ids(rng, (4, 9)), jnp.ones(2)
    nets = [make_encoder("bert", (9,), shape=ONE_LAYER, remat=remat) for remat in (False, True)]
    shapes = jax.eval_shape(nets[0].init, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0.1, 0.3, a.shape), jnp.float32), shapes)
    slope = lambda net: jax.grad(lambda p: jnp.sum(jnp.sin(net.apply(p, ids, mask))))
    a, b = jax.jit(lambda p: (slope(nets[0])(p), slope(nets[1])(p)))(params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)
    text = str(jax.make_jaxpr(jax.grad(lambda p: jnp.sum(nets[1].apply(p, ids, mask))))(params))
    assert "remat" in text or "checkpoint" in text


def test_fresh_layers_stay_random(tmp_path, rng):
    folder = write_model(tmp_path, tiny_tensors(rng))
    init = jax.jit(make_encoder("bert", (9,), weights=str(folder), fresh_layers=1).init)
    plain = jax.jit(make_encoder("bert", (9,), weights=str(folder)).init)(jax.random.key(0))
    fresh, again = init(jax.random.key(0)), init(jax.random.key(1))
    changed = {name for name in plain if _differ(plain[name], fresh[name])}
    assert changed == {"layer_1"}
    assert _differ(fresh["layer_1"]["query"], again["layer_1"]["query"])


def _differ(a, b):
    return any(
        np.any(np.asarray(x) != np.asarray(y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, rng):
    tensors = tiny_tensors(rng)
    name = "encoder.layer.1.attention.self.key.weight"

    def init(given, **changes):
        folder = write_model(tmp_path, given, **changes)
        return jax.eval_shape(make_encoder("bert", (9,), weights=str(folder)).init, jax.random.key(0))

    with pytest.raises(ValueError, match=rf"missing: {name}"):
        init({k: v for k, v in tensors.items() if k != name})
    with pytest.raises(ValueError, match=rf"other shapes: {name} is \(16, 8\) instead of \(16, 16\)"):
        init(tensors | {name: np.zeros((16, 8), np.float32)})
    with pytest.raises(ValueError, match=r"unexpected: encoder\.layer\.1\."):
        init(tensors, num_hidden_layers=1)
    init(tensors)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        jax.eval_shape(make_encoder("bert", (9,), weights=str(tmp_path)).init, jax.random.key(0))


def test_weights_in_several_files(tmp_path, rng):
    tensors = tiny_tensors(rng)
    folder, cut = (write_model(tmp_path / name, tensors) for name in ("whole", "cut"))
    files = cut_up(cut, tensors)
    init = lambda folder: make_encoder("bert", (9,), weights=str(folder)).init
    whole, several = (jax.jit(init(place))(jax.random.key(0)) for place in (folder, cut))
    jax.tree.map(np.testing.assert_array_equal, whole, several)

    shapes = lambda: jax.eval_shape(init(cut), jax.random.key(0))
    index = cut / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    name = "encoder.layer.1.attention.self.key.weight"
    without = {k: v for k, v in told["weight_map"].items() if k != name}
    index.write_text(json.dumps({"weight_map": without}))
    with pytest.raises(ValueError, match=rf"index\.json does not fit the network \(missing: {name}\)"):
        shapes()
    other = next(file.name for file in files if file.name != told["weight_map"][name])
    index.write_text(json.dumps({"weight_map": without | {name: other}}))
    with pytest.raises(ValueError, match=rf"files do not hold: {name} of {other}"):
        shapes()
    index.write_text(json.dumps(told))
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=rf"names {files[1].name}, and there is no such file"):
        shapes()
    index.write_text("[]")
    with pytest.raises(ValueError, match="not an index of safetensors files"):
        shapes()


def test_configs_that_are_not_carried_out_are_refused(tmp_path, rng):
    tensors = tiny_tensors(rng)
    for changes, text in (
        (dict(model_type="roberta"), "'roberta'"),
        (dict(hidden_act="swish"), "'swish'"),
        (dict(position_embedding_type="relative_key"), "absolute"),
        (dict(is_decoder=True), "decoder"),
        (dict(num_attention_heads=3), "not divisible by 3"),
    ):
        with pytest.raises(ValueError, match=text):
            read_config(write_model(tmp_path, tensors, **changes))
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in TINY.items() if k != "hidden_size"}))
    with pytest.raises(ValueError, match="does not tell hidden_size"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*config\.json"):
        read_config(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        weights_folder("./not/there/at all")


def test_settings_that_do_not_fit_are_refused(tmp_path, rng):
    folder = str(write_model(tmp_path, tiny_tensors(rng)))
    for x_shape, settings, text in (
        ((3, 4), {}, "needs token ids"),
        ((9,), dict(pool="max"), "pool is 'max'"),
        ((25,), dict(shape=SMALL), "25 tokens exceed BERT's 24 positions"),
        ((9,), dict(shape=SMALL, weights=folder), "leave `shape` or `weights` away"),
        ((9,), dict(shape=SMALL, fresh_layers=3), "there are 2 layers"),
        ((9,), dict(shape=dict(depth=3)), "depth"),
    ):
        with pytest.raises(ValueError, match=text):
            make_encoder("bert", x_shape, **settings)


def test_wordpiece_belongs_to_its_weights(tmp_path, rng):
    pytest.importorskip("tokenizers")
    folder = write_model(tmp_path, tiny_tensors(rng))
    tokenizer = load_tokenizer(folder, vocabulary=40, padding=0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS.split()), "##s", "?"]
    spelt = lambda *pieces: [2, *(words.index(piece) for piece in pieces), 3]
    found = tokenizer.encode(["What is my cards?", "zebra"])
    assert found == [spelt("what", "is", "my", "card", "##s", "?"), spelt("[UNK]")]
    with pytest.raises(ValueError, match="has 40 tokens, and the weights are of 41"):
        load_tokenizer(folder, vocabulary=41, padding=0)
    with pytest.raises(ValueError, match=r"pads with the id 0, .* says 1"):
        load_tokenizer(folder, vocabulary=40, padding=1)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        load_tokenizer(folder, vocabulary=40, padding=0)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json or vocab\.txt"):
        load_tokenizer(folder, vocabulary=40, padding=0)


def test_a_missing_library_is_named_with_its_remedy(tmp_path, rng, monkeypatch):
    import sys

    folder = write_model(tmp_path, tiny_tensors(rng))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"metaicl\[text\]"):
        load_tokenizer(folder, vocabulary=40, padding=0)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"metaicl\[text\]"):
        weights_folder("someone/some-model")


def test_hashed_words_and_padding():
    tokenizer = hashed_words(50)
    one, two = tokenizer.encode(["Pay my bill!", "pay  MY bill !"])
    assert one == two and one[0] == 1 and one[-1] == 2 and len(one) == 6
    assert all(3 <= token < 50 for token in one[1:-1])
    rows, lengths, cut = padded([[1, 7, 2], [1, 3, 4, 5, 6, 2]], 0, 4)
    np.testing.assert_array_equal(rows, [[1, 7, 2, 0], [1, 3, 4, 2]])
    assert list(lengths) == [3, 4] and cut == 1
    with pytest.raises(ValueError, match="no room"):
        hashed_words(3)


def test_default_shape_is_that_of_hashed_words():
    assert (
        BertShape().vocabulary == hashed_words().vocabulary and BertShape().padding == hashed_words().padding
    )


def test_upper_layers_on_the_states_of_the_frozen_ones_are_the_whole(tmp_path, rng):
    folder = str(write_model(tmp_path, tiny_tensors(rng)))
    ids, mask = token_ids(rng, (4, 9, 1)), jnp.ones(3)
    whole = make_encoder("bert", (9,), weights=folder)
    lower = lower_bert(1, weights=folder)
    upper = make_encoder("bert", (9, 16), weights=folder, frozen_layers=1)
    params, below, above = (jax.jit(net.init)(jax.random.key(0)) for net in (whole, lower, upper))
    assert set(below) == {"embeddings", "layer_0"} and set(above) == {"layer_1"}
    states = jax.jit(lower.apply)(below, ids, mask)
    assert not np.any(np.asarray(states)[ids == 0]) and np.all(
        np.any(np.asarray(states) != 0, -1) == (ids != 0)
    )

    def value(net, items):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(net.apply(p, items, mask)))))

    (expected, slope), (found, own) = value(whole, ids)(params), value(upper, states)(above)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), own, {"layer_1": slope["layer_1"]})
    assert _differ(own, jax.tree.map(jnp.zeros_like, own))


def test_halves_that_do_not_fit_are_refused(tmp_path, rng):
    tensors = tiny_tensors(rng)
    folder = str(write_model(tmp_path, tensors))
    for x_shape, settings, text in (
        ((9,), dict(frozen_layers=1), r"needs their states \[T, 16\]"),
        ((9, 8), dict(frozen_layers=1), r"needs their states \[T, 16\]"),
        ((9, 16), dict(frozen_layers=2), "frozen_layers is 2; give 0 to 1"),
        ((9, 16), dict(frozen_layers=1, fresh_layers=2), "2 layers, 1 of them frozen"),
    ):
        with pytest.raises(ValueError, match=text):
            make_encoder("bert", x_shape, weights=folder, **settings)
    for layers in (0, 2):
        with pytest.raises(ValueError, match="give 1 to 1"):
            lower_bert(layers, weights=folder)
    # A layer that config.json does not know of is not one that was left away.
    more = tensors | {"encoder.layer.2.output.dense.bias": np.zeros(16, np.float32)}
    broken = str(write_model(tmp_path / "more", more))
    with pytest.raises(ValueError, match=r"unexpected: encoder\.layer\.2"):
        make_encoder("bert", (9, 16), weights=broken, frozen_layers=1).init(jax.random.key(0))
