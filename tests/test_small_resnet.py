# SPDX-License-Identifier: Apache-2.0
"""The small residual network against PyTorch, and the weights that come with the package."""

from __future__ import annotations

import json
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import ROOT, cache  # noqa: F401

from metaicl.checkpoint import save_weights
from metaicl.data.procedural import embedded_album
from metaicl.episode import TaskSpec
from metaicl.files import array_digest
from metaicl.learners import make_learner
from metaicl.models import small_resnet
from metaicl.models.encoders import make_encoder


def of_torch(params, x):
    """The same network in PyTorch: the averages of all stages."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    p = {name: torch.tensor(np.asarray(value)) for name, value in params.items()}

    def conv(x, name):
        return functional.conv2d(x, p[f"{name}.kernel"].permute(3, 2, 0, 1), padding=1)

    def norm(x, name):
        return functional.group_norm(x, 8, p[f"{name}.scale"], p[f"{name}.offset"], eps=1e-5)

    x = torch.tensor(x).float().permute(0, 3, 1, 2) / 127.5 - 1
    x = torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
    x = functional.relu(norm(conv(x, "stem"), "stem"))
    found = []
    for stage in range(1, 5):
        x = functional.avg_pool2d(x, 2) if stage > 1 else x
        name = f"stage{stage}.block1"
        y = functional.relu(norm(conv(x, f"{name}.1"), f"{name}.1"))
        y = norm(conv(y, f"{name}.2"), f"{name}.2")
        if f"{name}.shortcut.kernel" in p:
            x = functional.conv2d(x, p[f"{name}.shortcut.kernel"].T[:, :, None, None])
        x = functional.relu(x + y)
        found.append(x.mean((2, 3)).numpy())
    return found


@pytest.fixture(scope="module")
def random():
    """Random parameters, with offsets and scales that matter."""
    params, rng = jax.jit(small_resnet.init)(jax.random.key(0)), np.random.default_rng(0)
    return {
        name: jnp.asarray(value + 0.3 * rng.standard_normal(value.shape).astype(np.float32))
        if value.ndim == 1
        else value
        for name, value in params.items()
    }


@pytest.mark.parametrize("side", [32, 64, 36])
def test_the_network_is_that_of_torch(random, side, rng):
    x = rng.integers(0, 256, (3, side, side, 3)).astype(np.uint8)
    wanted = of_torch(random, x)
    found = small_resnet.features(random, x, small_resnet.Size(pooled=4))
    np.testing.assert_allclose(found, np.concatenate(wanted, 1), atol=1e-5, rtol=1e-5)
    frozen = small_resnet.small_resnet()
    got = frozen.apply(random, x)
    assert got.shape == (3, frozen.width) and got.min() >= 0
    np.testing.assert_allclose(got, np.concatenate(wanted[-2:], 1), atol=1e-5, rtol=1e-5)


def test_the_encoder_is_the_network(random, rng):
    x = rng.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    for batched in (False, True):
        net = make_encoder("small_resnet", x.shape[1:], pooled=2, task_batched=batched)
        found = net.apply(random, x, jnp.ones(4))
        np.testing.assert_allclose(found, small_resnet.features(random, x), atol=1e-5, rtol=1e-5)
        assert net.width == found.shape[1] and net.independent


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least 16 x 16 pixels, got"):
        make_encoder("small_resnet", (8, 8, 3))
    with pytest.raises(ValueError, match="pooled=5 do not fit"):
        make_encoder("small_resnet", (32, 32, 3), pooled=5)


def test_the_package_has_the_weights_that_it_says():
    said = json.loads(small_resnet.PRETRAINED.with_suffix(".json").read_text())
    tensors = load_file(small_resnet.PRETRAINED)
    assert array_digest(tensors) == said["digest"]
    assert small_resnet.PRETRAINED.stat().st_size < 4e6
    assert sum(t.size for t in tensors.values()) == said["parameters"]
    assert said["command"].startswith("python -m metaicl.main --config=configs/formulas.py")
    loaded = small_resnet.load_small_resnet()
    for name, tensor in tensors.items():
        assert tensor.dtype == np.float16 and np.isfinite(tensor).all()
        np.testing.assert_array_equal(loaded[name], tensor.astype(np.float32))


def test_a_wheel_takes_the_weights():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder = ROOT / "metaicl" / "models"
    taken = {path for pattern in tools["package-data"]["metaicl.models"] for path in folder.glob(pattern)}
    assert {small_resnet.PRETRAINED, small_resnet.PRETRAINED.with_suffix(".json")} <= taken


@pytest.mark.slow
def test_weights_of_a_run_are_weights_too(tmp_path, random):
    spec = TaskSpec("classify", (32, 32, 3), "uint8", 10)
    learner = make_learner("supervised", spec, encoder="small_resnet")
    meta = jax.jit(learner.init)(jax.random.key(0))
    save_weights(tmp_path / "weights.safetensors", meta)
    found = small_resnet.load_small_resnet(tmp_path / "weights.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found, dict(meta.params["encoder"]))
    small_resnet.export(tmp_path / "weights.safetensors", tmp_path / "own.safetensors", steps=0)
    own = small_resnet.load_small_resnet(tmp_path / "own.safetensors")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), own, found)
    assert json.loads((tmp_path / "own.json").read_text())["steps"] == 0
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"does not fit the network .*configs/formulas\.py"):
        small_resnet.load_small_resnet(tmp_path / "other.safetensors")


def few_shot(features, labels, *, seed=0, episodes=150):
    """Accuracy of nearest class means on 5-way 5-shot episodes."""
    x = np.sqrt(np.abs(features) + 1e-12)
    x = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True))
    rng, classes = np.random.default_rng(seed), labels.max() + 1
    found = []
    for _ in range(episodes):
        rows = np.stack(
            [
                rng.choice(np.flatnonzero(labels == c), 8, replace=False)
                for c in rng.choice(classes, 5, replace=False)
            ]
        )
        means, queries = x[rows[:, :5]].mean(1), x[rows[:, 5:]].reshape(15, -1)
        answers = ((queries[:, None] - means[None]) ** 2).sum(-1).argmin(1)
        found.append(np.mean(answers == np.repeat(np.arange(5), 3)))
    return np.mean(found)


def test_learned_from_formulas_it_beats_random_weights(cache):  # noqa: F811
    pools = embedded_album(
        cache,
        image_size=64,
        datasets=("leaves", "printed_letters"),
        classes=8,
        images_per_class=12,
        workers=1,
    )
    apply = jax.jit(small_resnet.features)
    gains = []
    for pool in pools:
        learned, random = (
            few_shot(np.asarray(apply(params, pool.x)), pool.labels)
            for params in (small_resnet.load_small_resnet(), jax.jit(small_resnet.init)(jax.random.key(0)))
        )
        gains.append(learned - random)
    assert np.mean(gains) > 0.03, gains
