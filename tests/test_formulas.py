# SPDX-License-Identifier: Apache-2.0
"""Pictures of formulas: what an image depends on, what the families draw, and that colours do not tell the classes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny import ROOT, load_config, mesh

from metaicl.configuration import ConfigError, overridden
from metaicl.data import formulas
from metaicl.data.formulas import drawings, outlines, systems
from metaicl.data.formulas.painting import Painting
from metaicl.data.formulas.source import make_consts
from metaicl.episode import host_batch
from metaicl.experiment import make_any

SIDE = 32


@pytest.fixture(scope="module")
def few() -> formulas.Drawings:
    return formulas.draw_formulas(classes=12, images=3, side=SIDE)


def source(few, **given):
    settings = dict(classes=12, images=3, of_class=(0, 3), seed=0, items=8, side=SIDE) | given
    return formulas.painted(make_consts(few), **settings)


def built(source, numbers):
    return jax.jit(source.build)(source.consts, host_batch(source, numbers), jax.random.key(7))[0].query


def test_a_drawing_depends_on_its_seed_class_and_number_alone(few):
    fewer = formulas.draw_formulas(classes=7, images=2, side=SIDE)
    whole = few.maps.reshape(12, 3, SIDE, SIDE, 2)
    np.testing.assert_array_equal(fewer.maps.reshape(7, 2, SIDE, SIDE, 2), whole[:7, :2])
    other = formulas.draw_formulas(seed=1, classes=7, images=2, side=SIDE)
    assert (np.any(other.maps != fewer.maps, axis=(1, 2, 3))).all()


def test_images_and_classes_differ_and_all_show_something(few):
    ink = few.maps[..., 0].reshape(36, -1).astype(float)
    distances = np.abs(ink[:, None] - ink[None]).mean(-1) + 255 * np.eye(36)
    assert distances.min() > 1
    labels = np.repeat(np.arange(12), 3)
    same = (labels[:, None] == labels[None]) & ~np.eye(36, dtype=bool)
    others = labels[:, None] != labels[None]
    assert distances[same].mean() < 0.8 * distances[others].mean()
    assert (ink.std(axis=1) > 10).all()
    assert {drawings.family(number) for number in range(12)} == {"system", "curve", "waves", "shapes"}


def test_drawings_are_kept_in_a_file_of_all_they_come_from(tmp_path, monkeypatch):
    given = dict(classes=2, images=1, side=SIDE, cache_dir=tmp_path)
    first, told = formulas.draw_formulas(**given), []
    monkeypatch.setattr(drawings, "_class", lambda *a: pytest.fail("drawn again"))
    again = formulas.draw_formulas(**given, progress=lambda done, total: told.append(done))
    np.testing.assert_array_equal(first.maps, again.maps)
    assert told == [] and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(drawings, "_sources", lambda: b"other code")
    with pytest.raises(pytest.fail.Exception, match="drawn again"):
        formulas.draw_formulas(**given)


def test_the_attractor_of_a_known_system():
    """The maps x / 2 + corner / 2 of a triangle's corners leave Sierpinski's triangle, whose middle is empty."""
    corners = np.array([[0, 0], [1, 0], [0, 1]]) / 2
    triangle = systems.System(
        np.tile(np.eye(2) / 2, (3, 1, 1)), corners, np.full(3, 1 / 3), np.array([0, 0.5, 1])
    )
    ink, shade = np.moveaxis(systems.drawn(triangle, np.random.default_rng(0), 64), -1, 0)
    rows, columns = np.indices((64, 64)) / 63
    outside = rows + columns > 1.2  # the frame leaves the last points of a corner out
    middle = (rows < 0.44) & (columns < 0.44) & (rows + columns > 0.6)
    assert not ink[outside].any() and not ink[middle].any()
    small = (rows < 0.2) & (columns < 0.2)
    assert (ink[small] > 0).mean() > 0.4
    # A point's first digit, half of its shade, is the map that it came from last.
    assert shade[(rows < 0.4) & (columns < 0.4) & (ink > 0)].max() <= 128
    assert shade[(columns > 0.6) & (ink > 0)].min() >= 127


@pytest.mark.parametrize("seed", range(20))
def test_systems_contract_and_fill_some_area(seed):
    rng = np.random.default_rng(seed)
    system = systems.draw_system(rng)
    n = len(system.matrices)
    values = np.linalg.svd(system.matrices, compute_uv=False)
    total = values[:, 0].sum() + 2 * values[:, 1].sum()
    assert 2 <= n <= 8 and values.max() < 1 and (5 + n) / 2 <= total <= (6 + n) / 2
    np.testing.assert_allclose(system.chances.sum(), 1)
    changed = systems.perturbed(system, rng, 0.3)
    assert np.linalg.svd(changed.matrices, compute_uv=False).max() < 1


def test_waves_have_the_frequencies_of_their_formula():
    frequencies = np.array([[[8.0, 0.0]], [[0.0, 3.0]]])
    waves = outlines.Waves(frequencies, np.ones((2, 1)), 0.0, 1.0, 0.5)
    drawn = outlines.drawn_waves(waves, np.random.default_rng(0), 64)
    spectrum = np.abs(np.fft.rfft(drawn[..., 0].mean(1) - drawn[..., 0].mean()))
    assert abs(int(spectrum.argmax()) - 8) <= 2
    assert drawn[..., 0].std(axis=1).max() < 1  # constant along columns


@pytest.mark.slow
def test_an_episode_depends_on_seed_and_number_alone(few):
    one = source(few)
    alone, batch = built(one, [5]), built(one, [4, 5, 6])
    np.testing.assert_array_equal(alone.x[0], batch.x[1])
    np.testing.assert_array_equal(alone.y[0], batch.y[1])
    assert batch.x.shape == (3, 8, SIDE, SIDE, 3) and batch.x.dtype == np.uint8
    assert (batch.x[0] != batch.x[1]).mean() > 0.5
    other = built(source(few, seed=1), [5])
    assert (other.x != alone.x).mean() > 0.5
    assert source(few, seed=1).build is one.build


def test_held_out_drawings_are_not_trained_on(few):
    kept, held = source(few, of_class=(0, 2), items=200), source(few, of_class=(2, 3), items=200)
    rows = [set((s.indices(0)["rows"]).tolist()) for s in (kept, held)]
    assert not rows[0] & rows[1] and {row % 3 for row in rows[0]} == {0, 1}
    np.testing.assert_array_equal(kept.indices(3)["rows"] // 3, kept.indices(3)["labels"])
    with pytest.raises(ValueError, match="Images 2 to 4 of each class: there are 3"):
        source(few, of_class=(2, 4))


def nearest_mean(x, y, *, train):
    """Accuracy of nearest class means, of the rows after the first `train`."""
    means = np.stack([x[:train][y[:train] == c].mean(0) for c in range(12)])
    found = ((x[train:, None] - means[None]) ** 2).sum(-1).argmin(1)
    return (found == y[train:]).mean()


@pytest.mark.slow
def test_colours_tell_little_of_the_class(few):
    query = built(source(few, items=600), [0])
    x, y = np.asarray(query.x[0], np.float64), np.asarray(query.y[0])
    colour = nearest_mean(x.mean((1, 2)), y, train=400)
    assert colour < 4 / 12  # chance is one in 12
    spread = nearest_mean(np.sort(x.std((1, 2)), -1), y, train=400)
    assert spread < 4 / 12


@pytest.mark.slow
def test_palettes_are_of_the_class_where_asked(few):
    plain = dict(colour=0.0, blur=0.0, grey=0.0, noise=0.0, saturation=(1.0, 1.0))
    own, none = (
        built(source(few, items=600, painting=Painting(own_palette=p, **plain)), [0]) for p in (1.0, 0.0)
    )
    scores = [
        nearest_mean(np.asarray(q.x[0], np.float64).mean((1, 2)), np.asarray(q.y[0]), train=400)
        for q in (own, none)
    ]
    assert scores[0] > scores[1] + 0.05


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"data.held_out": 3}, "data.held_out is 3 of 3"),
        ({"data.painting": {"glow": 1.0}}, "data.painting: .*glow.*own_palette, colour"),
        ({"data.classes": 1}, "classes=1: give at least 2"),
    ],
)
def test_bad_settings_are_refused(overrides, text, tmp_path):
    small = {"data.classes": 12, "data.images": 3, "data.side": SIDE, "data.cache": str(tmp_path)}
    config = load_config(ROOT / "configs" / "formulas.py", "quick")
    with config.unlocked():
        config.data.painting = overrides.pop("data.painting", {})
        del config.runs
    config = overridden(config, small | overrides)
    with pytest.raises((ConfigError, ValueError), match=text):
        make_any("main", config, tmp_path / "run", mesh())
