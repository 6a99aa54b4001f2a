# SPDX-License-Identifier: Apache-2.0
"""SqueezeNet against PyTorch, the import of weights, and the cache of frozen features."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest
from real_data import REAL_DATA, needs_real
from safetensors.numpy import save_file

from metaicl.data.images import EncodedImages, perceptual_hash
from metaicl.data.meta_album import read_dataset
from metaicl.data.pool import Pool
from metaicl.features import cache
from metaicl.files import DamagedFile
from metaicl.models import squeezenet, weights
from metaicl.models.encoders import make_encoder
from metaicl.models.network import normalized

# 5-way 5-shot accuracy of nearest centroids on these features at 128 pixels, as noted beside the data
YARDSTICKS = {"NEU_Mini": 0.89, "MTD_Mini": 0.38, "FL5_Mini": 0.57}


def random_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under the file's names, scaled so that activations stay of order one through the fires."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in squeezenet.expected_shapes().items():
        fan_in = np.prod(shape[:-1]) if name.endswith("kernel") else 100.0
        tensors[name] = (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
    tensors["conv1.kernel"] *= 0.02  # the input is of order 100
    return tensors


def write_weights(path, tensors=None):
    save_file(random_tensors() if tensors is None else tensors, path)
    return path


def torch_stages(tensors: dict[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    """The same network in PyTorch's functional operations, written from its description."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    bgr = images[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32)

    def conv(name, x, **options):
        kernel = torch.tensor(tensors[f"{name}.kernel"].transpose(3, 2, 0, 1).copy())
        return functional.relu(functional.conv2d(x, kernel, torch.tensor(tensors[f"{name}.bias"]), **options))

    x = conv("conv1", torch.tensor(bgr.transpose(0, 3, 1, 2).copy()), stride=2)
    found = {"conv1": x}
    for i in range(2, 10):
        if i in (2, 4, 6):
            x = functional.max_pool2d(x, 3, 2)
        x = conv(f"fire{i}.squeeze1x1", x)
        x = torch.cat([conv(f"fire{i}.expand1x1", x), conv(f"fire{i}.expand3x3", x, padding=1)], dim=1)
        found[f"fire{i}"] = x
    result = {name: value.numpy().transpose(0, 2, 3, 1) for name, value in found.items()}
    return result | {"features": x.mean(dim=(2, 3)).numpy()}


def assert_same_stages(path, tensors, images):
    params = squeezenet.load_squeezenet(path)
    ours = jax.jit(squeezenet.stages)(params, images)
    theirs = torch_stages(tensors, images)
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        error = np.abs(np.asarray(ours[name]) - expected).max() / np.abs(expected).max()
        assert ours[name].shape == expected.shape and error < 1e-4, (name, error)


def test_every_stage_agrees_with_pytorch(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (2, 67, 50, 3)).astype(np.uint8)
    assert_same_stages(write_weights(tmp_path / "w.safetensors"), random_tensors(), images)


@needs_real
def test_every_stage_agrees_with_pytorch_on_real_weights():
    from safetensors.numpy import load_file

    path = REAL_DATA / "weights" / "squeezenet_imagenet.safetensors"
    images = np.asarray(read_dataset(REAL_DATA / "album" / "FL5_Mini", image_size=128).x[::100])
    assert_same_stages(path, load_file(path), images)


def test_backbone_takes_bytes_or_floats_and_has_its_size(tmp_path):
    net = squeezenet.squeezenet()
    params = squeezenet.load_squeezenet(write_weights(tmp_path / "w.safetensors"))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 722_496
    assert jax.tree.map(np.shape, jax.eval_shape(net.init, jax.random.key(0))) == jax.tree.map(
        np.shape, params
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)
    apply = jax.jit(net.apply)
    features = apply(params, images)
    assert features.shape == (3, net.width) and features.dtype == np.float32
    np.testing.assert_array_equal(features, apply(params, images.astype(np.float32)))
    with pytest.raises(ValueError, match=r"at least 31 x 31 .*\(3, 30, 40, 3\)"):
        net.apply(params, images[:, :30])


@pytest.mark.slow
def test_the_encoder_begins_with_the_pretrained_features(tmp_path):
    """To be fine-tuned: its features at the start are the frozen ones, and its weights have a gradient."""
    path = str(write_weights(tmp_path / "w.safetensors"))
    net = make_encoder("squeezenet", (40, 40, 3), weights=path, normalize="sqrt_unit")
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)
    params = jax.jit(net.init)(jax.random.key(5))
    frozen = squeezenet.squeezenet().apply(squeezenet.load_squeezenet(path), images)
    found = net.apply(params, images, np.ones(3, np.float32))
    np.testing.assert_allclose(found, normalized(frozen, "sqrt_unit"), rtol=1e-5)
    assert found.shape == (3, net.width) == (3, 512) and net.independent
    grads = jax.grad(lambda p: net.apply(p, images, np.ones(3, np.float32))[:, :9].sum())(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    plain = make_encoder("squeezenet", (40, 40, 3)).init(jax.random.key(0))
    assert jax.tree.map(np.shape, plain) == jax.tree.map(np.shape, params)


def test_what_the_encoder_cannot_take_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"at least 31 x 31 .*\(1, 16, 16, 3\)"):
        make_encoder("squeezenet", (16, 16, 3))
    with pytest.raises(ValueError, match="computes in float32, not in bfloat16"):
        make_encoder("squeezenet", (40, 40, 3), dtype="bfloat16")
    with pytest.raises(FileNotFoundError, match="no weights file"):
        make_encoder("squeezenet", (40, 40, 3), weights=str(tmp_path / "none")).init(jax.random.key(0))


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    tensors = random_tensors()
    tensors["classifier.bias"] = tensors.pop("fire9.expand1x1.bias")
    tensors["conv1.kernel"] = tensors["conv1.kernel"].transpose(3, 2, 0, 1).copy()
    path = write_weights(tmp_path / "w.safetensors", tensors)
    with pytest.raises(ValueError) as caught:
        squeezenet.load_squeezenet(path)
    for text in ("w.safetensors", "missing: fire9.expand1x1.bias", "unexpected: classifier.bias"):
        assert text in str(caught.value)
    assert "conv1.kernel is (64, 3, 3, 3) instead of (3, 3, 3, 64)" in str(caught.value)
    with pytest.raises(ValueError, match=r"t1, t2, t3, t4, t5 and 2 more"):
        weights.load_safetensors(
            path, {**{n: t.shape for n, t in tensors.items()}, **{f"t{i}": () for i in range(1, 8)}}
        )
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        squeezenet.load_squeezenet(path)
    with pytest.raises(FileNotFoundError, match=r"no weights file .*none"):
        squeezenet.load_squeezenet(tmp_path / "none")


def colour_backbone(traces: list | None = None) -> squeezenet.Backbone:
    """Features = weight times the mean colour; counts how often it is traced."""

    def apply(params, x):
        if traces is not None:
            traces.append(x.shape)
        return x.astype(np.float32).mean(axis=(1, 2)) * params["w"][None]

    return squeezenet.Backbone(lambda key: {"w": np.ones(3, np.float32)}, apply, 3, "none-v1")


def image_pool(name: str, n: int, seed: int = 0) -> Pool:
    images = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
    digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images], "S64")
    return Pool(name, "d", ("c",), np.zeros(n, np.int32), images, digests)


def embed(pools, folder, *, w=1.0, backbone=None, name="colour", batch=4, progress=None):
    params = {"w": np.full(3, w, np.float32)}
    backbone = backbone or colour_backbone()
    return cache.embed_pools(
        pools, backbone, params, cache_dir=folder, backbone_name=name, batch=batch, progress=progress
    )


def test_features_are_those_of_each_image_in_one_program(tmp_path):
    traces: list = []
    pools = [image_pool("a", 4), image_pool("b", 9, seed=1), image_pool("c", 35, seed=2)]
    for folder in (tmp_path, tmp_path, None):  # computed, read, computed without a cache
        for pool, embedded in zip(pools, embed(pools, folder, backbone=colour_backbone(traces)), strict=True):
            np.testing.assert_allclose(embedded.x, pool.x.mean(axis=(1, 2)), rtol=1e-5)
            assert embedded.x.dtype == np.float32 and embedded.name == pool.name
            np.testing.assert_array_equal(embedded.phashes, perceptual_hash(pool.x))
            np.testing.assert_array_equal(embedded.digests, pool.digests)
    assert traces == [(4, 8, 8, 3)] * 2  # one program in each of the calls that computed


def test_encoded_pools_are_decoded_in_parts_and_read_without_decoding(tmp_path):
    import cv2

    whole = image_pool("a", 37)
    reads: list = []

    def read(i: int) -> bytes:
        reads.append(i)
        return cv2.imencode(".png", whole.x[i][..., ::-1])[1].tobytes()

    pool = dataclasses.replace(whole, x=EncodedImages(read, [str(i) for i in range(37)], 8))
    steps: list = []
    (embedded,) = embed([pool], tmp_path, progress=lambda *step: steps.append(step))
    assert sorted(reads) == list(range(37)) and steps[0] == ("a", 4, 37) and steps[-1] == ("a", 37, 37)
    (again,) = embed([pool], tmp_path)
    assert len(reads) == 37
    np.testing.assert_array_equal(again.x, embedded.x)
    np.testing.assert_allclose(again.x, whole.x.mean(axis=(1, 2)), rtol=1e-5)


def test_whatever_features_depend_on_changes_the_file(tmp_path, monkeypatch):
    pool = image_pool("a", 5)
    embed([pool], tmp_path)
    order = dataclasses.replace(pool, x=pool.x[::-1], digests=pool.digests[::-1])
    np.testing.assert_allclose(embed([order], tmp_path)[0].x, order.x.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(embed([pool], tmp_path, w=2.0)[0].x, 2 * pool.x.mean(axis=(1, 2)), rtol=1e-5)
    embed([dataclasses.replace(pool, x=pool.x[:, :4, :4])], tmp_path)
    embed([pool], tmp_path, name="other/name")
    embed([pool], tmp_path, backbone=colour_backbone()._replace(preprocessing="none-v2"))
    monkeypatch.setattr(cache, "CODE_VERSION", cache.CODE_VERSION + 1)
    embed([pool], tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 7
    embed([pool], tmp_path)
    assert len(list(tmp_path.iterdir())) == 7  # and no partial file is left


def _flip_a_feature(path):
    with np.load(path) as file:
        arrays = dict(file)
    arrays["features"][2, 1] += 1
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    "damage",
    [
        _flip_a_feature,
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path, features=np.zeros((5, 3), np.float32)),
    ],
)
def test_damaged_cache_is_rebuilt_with_a_warning(tmp_path, damage):
    pool = image_pool("a", 5)
    (first,) = embed([pool], tmp_path)
    (path,) = tmp_path.glob("*.npz")
    damage(path)
    with pytest.warns(DamagedFile, match=r"a-colour-.*\.npz is damaged.*rebuilt"):
        (again,) = embed([pool], tmp_path)
    np.testing.assert_array_equal(again.x, first.x)
    np.testing.assert_array_equal(embed([pool], tmp_path)[0].x, first.x)  # and now without a warning


def test_killed_work_keeps_the_finished_data_sets(tmp_path):
    pools = [image_pool("a", 5), image_pool("b", 5, seed=1)]

    def stop_at_b(name, done, total):
        if name == "b":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(pools, tmp_path, progress=stop_at_b)
    assert [path.name[:9] for path in tmp_path.iterdir()] == ["a-colour-"]
    computed: set = set()
    embed(pools, tmp_path, progress=lambda name, done, total: computed.add(name))
    assert computed == {"b"}


def test_pools_without_images_and_broken_weights_are_refused(tmp_path):
    pool = image_pool("a", 5)
    with pytest.raises(ValueError, match=r"a holds float32 \(5, 3\).*uint8 images"):
        embed([dataclasses.replace(pool, x=np.zeros((5, 3), np.float32))], tmp_path)
    with pytest.raises(ValueError, match=r"a: item 0 has features that are not finite"):
        embed([pool], tmp_path, w=np.inf)
    assert list(tmp_path.iterdir()) == []


@needs_real
def test_nearest_centroids_reach_the_published_yardsticks(tmp_path):
    params = squeezenet.load_squeezenet(REAL_DATA / "weights" / "squeezenet_imagenet.safetensors")
    pools = [read_dataset(REAL_DATA / "album" / name, image_size=128) for name in YARDSTICKS]
    embedded = cache.embed_pools(
        pools, squeezenet.squeezenet(), params, cache_dir=tmp_path, backbone_name="squeezenet"
    )
    rng = np.random.default_rng(0)
    for pool in embedded:
        z = np.sqrt(pool.x)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        hits = []
        for _ in range(200):
            classes = rng.choice(len(pool.classes), 5, replace=False)
            rows = np.stack([rng.permutation(np.flatnonzero(pool.labels == c))[:20] for c in classes])
            centroids = z[rows[:, :5]].mean(axis=1)  # [5, D]
            distances = np.square(z[rows[:, 5:], None] - centroids).sum(-1)  # [5, 15, 5]
            hits.append(np.mean(distances.argmin(-1) == np.arange(5)[:, None]))
        assert abs(np.mean(hits) - YARDSTICKS[pool.name]) < 0.05, (pool.name, np.mean(hits))
