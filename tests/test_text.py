# SPDX-License-Identifier: Apache-2.0
"""Sentences: readers and what they refuse, episodes in buckets, and what adapts in a sentence encoder."""

from __future__ import annotations

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from real_data import REAL_DATA, needs_real

from metaicl.data import sampler, splits
from metaicl.data.images import DataWarning
from metaicl.data.pipeline import open_batches
from metaicl.data.text import list_domains, make_pools, read_out_of_scope, read_sentences
from metaicl.data.tokens import hashed_words
from metaicl.episode import Episode, Examples, TaskSpec, host_batch, replicate
from metaicl.learners import make_learner
from metaicl.learners.classifier import make_classifier
from metaicl.learners.inner import inner_loop
from metaicl.learners.subtree import split

WORDS = hashed_words(200)


def write_csv(path, rows, header="text,label,domain"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def rows_of(domains=("bank", "home"), labels=3, each=8):
    """Sentences of 1 to 3 words and a number, each of its own; every fourth has 11."""
    return [
        f"{' '.join(f'w{n}{d}{c}' for n in range(11 if i % 4 == 3 else 1 + i % 3))} {i},{d}{c},{d}"
        for d in domains
        for c in range(labels)
        for i in range(each)
    ]


def pools_of(tmp_path, buckets=(4, 8, 16), **settings):
    found = read_sentences(str(write_csv(tmp_path / "own.csv", rows_of())), "")
    return make_pools(found, WORDS, longest=16, buckets=buckets, **settings)


# Readers


@needs_real
def test_clinc150_has_ten_domains_of_fifteen_intents():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = read_sentences("clinc150", REAL_DATA / "text")
    by_hand = json.loads((REAL_DATA / "text" / "clinc150_data_full.json").read_text())
    texts = [text for part in ("train", "val", "test") for text, _ in by_hand[part]]
    assert len(texts) == 22500
    repeated = 22500 - len({" ".join(text.lower().split()) for text in texts})
    assert len(found.texts) == 22500 - repeated and len(told) == (repeated > 0)
    assert "oos" not in found.labels and len(set(found.domains)) == 10 and len(set(found.labels)) == 150
    pools = make_pools(found, hashed_words(), longest=64, buckets=(16, 32, 64))
    assert [len(pool.classes) for pool in pools] == [15] * 10
    assert {pool.domain for pool in pools} == set(list_domains("clinc150", REAL_DATA / "text"))
    assert sum(map(len, pools)) == len(found.texts) and {pool.x.shape[1] for pool in pools} == {32}
    at = found.texts.index("what expression would i use to say i love you if i were an italian")
    travel = next(pool for pool in pools if pool.domain == "travel")
    row = hashed_words().encode([found.texts[at]])[0]
    place = np.flatnonzero((travel.x[:, : len(row)] == row).all(axis=1))
    assert [travel.classes[travel.labels[i]] for i in place] == ["translate"]


@needs_real
def test_out_of_scope_sentences_are_those_of_no_intent():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        found, scoped = (f("clinc150", REAL_DATA / "text") for f in (read_out_of_scope, read_sentences))
    assert 1150 < len(found.texts) <= 1200 and set(found.labels) == {"oos"}
    assert "how much has the dow changed today" in found.texts and len({*found.texts} & {*scoped.texts}) < 5
    with pytest.raises(ValueError, match="'banking77' has no out-of-scope sentences"):
        read_out_of_scope("banking77", REAL_DATA / "text")


@needs_real
def test_banking77_is_one_domain_of_77_intents():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        found = read_sentences("banking77", REAL_DATA / "text")
    assert 13000 < len(found.texts) <= 13083 and set(found.domains) == {"banking"}
    assert found.labels[found.texts.index("I am still waiting on my card?")] == "card_arrival"
    (pool,) = make_pools(found, hashed_words(), longest=128)
    assert len(pool.classes) == 77 and pool.name == "banking77" and pool.domain == "banking"


def test_csv_and_jsonl_say_the_same(tmp_path):
    rows = rows_of()
    one = read_sentences(str(write_csv(tmp_path / "a.csv", rows)), "")
    tsv = write_csv(tmp_path / "a.tsv", [row.replace(",", "\t") for row in rows], "Utterance\tINTENT\tdomain")
    fields = [dict(zip(("text", "category", "domain"), row.split(","), strict=True)) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in fields) + "\n\n")
    assert one == read_sentences(str(tsv), "") == read_sentences(str(tmp_path / "a.jsonl"), "")
    assert one.texts[0] == rows[0].split(",")[0] and set(one.domains) == {"bank", "home"}
    plain = write_csv(tmp_path / "plain.csv", [row.rsplit(",", 1)[0] for row in rows], "text,label")
    assert set(read_sentences(str(plain), "").domains) == {"plain"}


def test_repeated_sentences_are_left_out_and_counted(tmp_path):
    path = write_csv(
        tmp_path / "a.csv", ["Pay my bill,pay,x", "pay  MY bill,pay,x", "pay my bill,stop,x", "no,stop,x"]
    )
    with pytest.warns(DataWarning, match=r"left out 2 sentences .*, 1 of them with another label"):
        found = read_sentences(str(path), "")
    assert found.texts == ["Pay my bill", "no"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "sentences,label\nhello,x\n", ["line 2", "no column 'text'", "'sentences', 'label'"]),
        ("a.csv", "text,kind\nhello,x\n", ["line 2", "no column 'label' (or category"]),
        ("a.csv", "text,label\nhello,x\n  ,x\n", ["line 3", "an empty sentence"]),
        ("a.csv", "text,label\nhello,\n", ["line 2", "an empty label"]),
        ("a.csv", "text,label\nhello\n", ["line 2", "an empty label"]),
        ("a.csv", "text,label\n", ["holds no sentence"]),
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"text"\n', ["line 2 is not valid JSON"]),
        ("a.jsonl", "[1, 2]\n", ["line 1 is no JSON object"]),
        ("a.xlsx", "", ["no data set of sentences", "clinc150, banking77", ".csv", ".jsonl"]),
    ],
)
def test_files_that_cannot_be_understood_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as error:
        read_sentences(str(tmp_path / name), "")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.csv"):
        read_sentences(str(tmp_path / "none.csv"), "")
    with pytest.raises(FileNotFoundError, match=r"no clinc150_data_full\.json or data_full\.json"):
        read_sentences("clinc150", tmp_path)
    (tmp_path / "data_full.json").write_text(json.dumps({"train": [["hi", "greet"]], "val": [], "test": []}))
    (tmp_path / "domains.json").write_text(json.dumps({"talk": ["bye"]}))
    with pytest.raises(ValueError, match="no domain of the intent 'greet'"):
        read_sentences("clinc150", tmp_path)


# Pools and episodes


def test_long_sentences_are_cut_and_counted_once(tmp_path):
    long = " ".join(f"w{i}" for i in range(30))
    found = read_sentences(str(write_csv(tmp_path / "a.csv", [f"{long},a,x", "short,b,x"])), "")
    with pytest.warns(DataWarning, match="1 of 2 sentences are longer than 10 tokens") as told:
        (pool,) = make_pools(found, WORDS, longest=10, buckets=(4, 8))
    assert len(told) == 1 and pool.x.shape == (2, 10)
    whole = WORDS.encode([long])[0]
    np.testing.assert_array_equal(pool.x[0], [*whole[:9], whole[-1]])


def test_pools_are_of_domains_or_of_all(tmp_path):
    pools = pools_of(tmp_path)
    assert [(p.name, p.domain, p.classes) for p in pools] == [
        ("own_bank", "bank", ("bank0", "bank1", "bank2")),
        ("own_home", "home", ("home0", "home1", "home2")),
    ]
    (whole,) = pools_of(tmp_path, by="all")
    assert (whole.name, whole.domain, len(whole.classes), len(whole)) == ("own", "all", 6, 48)
    held = splits.leave_domain_out(pools, "home")
    assert [p.domain for p in held.train] == ["bank"] and [p.domain for p in held.test] == ["home"]
    parts, by = splits.split_within(whole, (0.5, 0.0, 0.5), 0, min_classes=6)
    assert by == "classes" and not set(parts.train[0].classes) & set(parts.test[0].classes)
    with pytest.raises(ValueError, match="has 0 classes of at least 9"):
        splits.drop_small_classes(pools[0], 9, ways=3)


def source_of(pools, seed=0, **settings):
    store = sampler.make_store(pools, widths=(4, 8, 16))
    sizes = dict(ways=2, shots=1, queries=1) | settings
    return store, sampler.episodes(store, pools, seed=seed, **sizes)


def test_a_batch_is_as_wide_as_its_longest_sentence_needs(tmp_path):
    store, source = source_of(pools_of(tmp_path))
    x = np.asarray(store.consts["x"])
    assert x.shape[1] == 16
    widths = set()
    for batch in (range(0, 1), range(1, 2), range(2, 5), range(5, 13), range(13, 14), range(14, 15)):
        host = host_batch(source, batch)
        rows = np.concatenate([host["support_rows"], host["query_rows"]], axis=1)
        longest = (x[rows] != 0).sum(-1).max()
        width = min(w for w in (4, 8, 16) if w >= longest)
        assert host["columns"].shape == (len(batch), width)
        made, _ = source.build(source.consts, host, jax.random.key(0))
        np.testing.assert_array_equal(made.support.x, x[host["support_rows"]][..., :width])
        np.testing.assert_array_equal(made.query.x, x[host["query_rows"]][..., :width])
        assert not x[rows][..., width:].any()
        widths.add(width)
    assert len(widths) > 1


def test_an_episode_depends_on_seed_and_number_alone_whatever_its_batch(tmp_path):
    pools = pools_of(tmp_path)
    one, again = source_of(pools)[1], source_of(pools)[1]
    for i in (3, 11):
        alone, amid = host_batch(one, [i]), host_batch(again, range(i - 2, i + 5))
        for name in alone.keys() - {"columns"}:
            np.testing.assert_array_equal(alone[name][0], amid[name][2])
    other = host_batch(source_of(pools, seed=1)[1], range(8))
    assert any(np.any(other[n] != host_batch(one, range(8))[n]) for n in ("support_rows", "query_rows"))


def test_every_process_serves_the_same_width(tmp_path):
    pools = pools_of(tmp_path)
    source = source_of(pools)[1]
    whole = open_batches(source, 4, threads=0)
    parts = [open_batches(source_of(pools)[1], 4, process=p, processes=4, threads=0) for p in range(4)]
    own = set()
    for t in range(8):
        batch, pieces = next(whole), [next(part) for part in parts]
        assert {piece["columns"].shape for piece in pieces} == {(1, batch["columns"].shape[1])}
        for name, column in batch.items():
            np.testing.assert_array_equal(column, np.concatenate([piece[name] for piece in pieces]))
        own |= {(source.width([4 * t + p]), batch["columns"].shape[1]) for p in range(4)}
    assert any(alone < together for alone, together in own)  # else the test would say nothing


def test_replicas_share_the_width_of_the_widest(tmp_path):
    pools = pools_of(tmp_path)
    store = sampler.make_store(pools, widths=(4, 8, 16))
    each = [sampler.episodes(store, pools, seed=s, ways=2, shots=1, queries=1) for s in range(3)]
    both = replicate(each)
    for i in range(6):
        host = host_batch(both, [i])
        width = max(source.width([i]) for source in each)
        assert host["columns"].shape == (1, 3, width)
        np.testing.assert_array_equal(host["support_rows"][0, 1], each[1].indices(i)["support_rows"])


def test_one_trace_for_each_width(tmp_path):
    _, source = source_of(pools_of(tmp_path))
    traced = []

    @jax.jit
    def step(consts, host):
        made, _ = source.build(consts, host, jax.random.key(0))
        traced.append(made.support.x.shape[-1])
        return made.support.x.sum()

    for i in range(20):
        step(source.consts, host_batch(source, [i]))
    assert sorted(traced) == sorted(set(traced)) and set(traced) == {source.width([i]) for i in range(20)}


def test_widths_of_sentences_with_padding_inside():
    x = np.array([[0, 0, 0, 0], [5, 0, 7, 0], [5, 6, 7, 8]], np.int32)
    buckets = sampler.Buckets.of(x, 0, (9, 2))
    assert buckets.widths == (2, 4) and buckets.lengths.tolist() == [0, 3, 4]
    assert buckets.holding(np.array([0])) == 2 and buckets.holding(np.array([0, 1])) == 4


# What adapts

SMALL = dict(vocabulary=30, width=8, layers=2, heads=2, hidden=12, positions=12)
CHOICES = {
    "all": ({}, "all"),
    "head": ({}, "head"),
    "top layer": ({}, "encoder/layer_1+head"),
    "layer norms": ({}, "encoder/*norm+head"),
    "adapters": (dict(adapters=3), "encoder/*adapter*+head"),
    "low rank": (dict(lora=2), "encoder/*lora*+head"),
    "prompts": (dict(prompts=2), "encoder/*prompts*+head"),
    "warp": ({}, "-encoder/*/feed_forward*"),
}
EXPECTED = {  # names that a moved parameter of the encoder has, and those that it does not have
    "all": ("", "nothing"),
    "head": ("nothing", ""),
    "top layer": ("layer_1", "layer_0"),
    "layer norms": ("norm", "query"),
    "adapters": ("adapter", "query"),
    "low rank": ("lora", "kernel"),
    "prompts": ("prompts", "kernel"),
    "warp": ("", "feed_forward"),
}


@pytest.mark.parametrize(
    "choice", [c if c in ("head", "adapters") else pytest.param(c, marks=pytest.mark.slow) for c in CHOICES]
)
def test_what_is_asked_for_moves_and_the_rest_stays_bitwise(rng, choice, x64):
    added, adapted = CHOICES[choice]
    network = make_classifier(
        TaskSpec("classify", (6,), "int32", 3), "bert", dict(shape=SMALL, **added), "float64"
    )
    params = network.init(jax.random.key(0))
    x = jnp.asarray(rng.integers(1, 30, (6, 6)), jnp.int32)
    support = Examples(x, jnp.arange(6, dtype=jnp.int32) % 3, jnp.ones(6))
    # In 64 bits: the first steps of what starts as nothing are tiny.
    loop = inner_loop(steps=5, learning_rate=1.0, order="first", adapted=adapted)
    # What starts as nothing passes no derivative to what is in front of it before it has moved itself.
    moved = jax.jit(lambda p: loop.run(network.support_loss, p, support, jax.random.key(1)).params)(params)
    chosen = {path for path, _ in flat(split(params, adapted)[0])}
    changed = {path for path, leaf in flat(params) if np.any(leaf != dict(flat(moved))[path])}
    assert changed <= chosen
    # The keys' biases shift all logits alike, and rows of the tables that no sentence uses get no derivative.
    assert {path for path in chosen - changed if not path.endswith("key/bias")} == set()
    has, lacks = EXPECTED[choice]
    names = {path for path in changed if path.startswith("encoder")}
    assert all(has in name for name in names) and not any(lacks in name for name in names)
    assert any(path.startswith("head") for path in changed)


def flat(tree):
    return [("/".join(k.key for k in path), leaf) for path, leaf in jax.tree.flatten_with_path(tree)[0]]


@pytest.mark.slow
def test_second_order_through_rematerialised_layers_is_that_of_reverse_over_reverse(rng, x64):
    spec = TaskSpec("classify", (6,), "int32", 3)
    x = rng.integers(1, 30, (2, 1, 6, 6)).astype(np.int32)  # support and query of one episode
    parts = [Examples(part, np.arange(6, dtype=np.int32)[None] % 3, np.ones((1, 6))) for part in x]
    shape = SMALL | dict(layers=1)

    def learner(order, remat):
        settings = dict(shape=shape, adapters=2, lora=1, prompts=2, remat=remat)
        network = dict(encoder="bert", encoder_settings=settings, dtype="float64")
        return make_learner("maml", spec, order=order, inner_steps=2, inner_lr=0.1, **network)

    shapes = jax.eval_shape(learner("first", False).init, jax.random.key(0))
    meta = jax.tree.map(lambda a: rng.normal(0.1, 0.3, a.shape), shapes)
    grads = {
        (order, remat): jax.jit(learner(order, remat).meta_grad)(
            meta, Episode(*parts), jax.random.key(1), jnp.int32(0)
        )[0]
        for order, remat in (("second_reverse", False), ("second", True), ("first", False))
    }
    exact = grads["second_reverse", False]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), exact, grads["second", True])
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), exact, grads["first", False])
    assert max(jax.tree.leaves(apart)) > 1e-3
