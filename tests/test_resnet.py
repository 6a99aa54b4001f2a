# SPDX-License-Identifier: Apache-2.0
"""ResNets against PyTorch, and the import of their weights from every kind of file."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from tiny import ROOT, load_config
from torch_resnet import torch_resnet, torch_stages

from metaicl import defaults
from metaicl.data.pool import Pool
from metaicl.experiment.problems import album_pools
from metaicl.features import cache
from metaicl.models import resnet, resnet_weights
from metaicl.models.encoders import make_encoder


def state(net) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in net.state_dict().items()}


def random_state(depth: int) -> dict[str, np.ndarray]:
    """Tensors under a file's names, for what needs no oracle."""
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in resnet_weights.expected_shapes(depth).items():
        near_one = rng.uniform(0.5, 1.5, shape)
        kernel = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        tensors[name] = (kernel if len(shape) == 4 else near_one).astype(np.float32)
    return tensors


def write(path, tensors):
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    return path


def images_of(n, h, w):
    return np.random.default_rng(1).integers(0, 256, (n, h, w, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("depth", "size"),
    [
        (18, (75, 50)),
        pytest.param(18, (64, 64), marks=pytest.mark.slow),
        pytest.param(34, (33, 47), marks=pytest.mark.slow),
        (50, (45, 70)),
        pytest.param(50, (64, 64), marks=pytest.mark.slow),
    ],
)
def test_every_stage_agrees_with_pytorch(depth, size, tmp_path):
    net, images = torch_resnet(depth), images_of(2, *size)
    params = resnet_weights.load_resnet(depth, write(tmp_path / "w.safetensors", state(net)))
    ours = jax.jit(lambda p, x: resnet.stages(depth, p, x))(params, images)
    theirs = torch_stages(net, images)
    assert set(ours) == set(theirs) == {"stem", "layer1", "layer2", "layer3", "layer4", "features"}
    for name, expected in theirs.items():
        error = np.abs(np.asarray(ours[name]) - expected).max() / np.abs(expected).max()
        assert ours[name].shape == expected.shape and error < 1e-4, (name, error)


def saved(how: str, path, tensors):
    """The tensors in one of the kinds of files that people have."""
    if how == "safetensors":
        return write(path / "w.safetensors", tensors)
    torch = pytest.importorskip("torch")
    as_torch = {name: torch.from_numpy(value) for name, value in tensors.items()}
    if how == "wrapped":
        inner = {f"module.backbone.{name}": value for name, value in as_torch.items()}
        whole = {"epoch": 7, "state_dict": inner | {"module.head.weight": torch.zeros(3)}}
        torch.save(whole, path / "w.pt")
        return path / "w.pt"
    torch.save(as_torch, path / "w.pth", _use_new_zipfile_serialization=how == "zip")
    return path / "w.pth"


@pytest.mark.parametrize("how", ["zip", "stream", "wrapped"])
def test_every_kind_of_file_gives_the_same_parameters(how, tmp_path):
    tensors = random_state(18) | {"fc.weight": np.ones((10, 512), np.float32)}
    tensors["bn1.num_batches_tracked"] = np.array(5)
    expected = resnet_weights.load_resnet(18, saved("safetensors", tmp_path, tensors))
    found = resnet_weights.load_resnet(18, saved(how, tmp_path, tensors))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.testing.assert_array_equal(found["conv1"]["kernel"][2, 5, 1], tensors["conv1.weight"][:, 1, 2, 5])


def test_a_folder_of_a_hub_model_is_taken(tmp_path):
    write(tmp_path / "model.safetensors", random_state(18))
    assert resnet_weights.weights_file(18, tmp_path) == tmp_path / "model.safetensors"


def test_a_hub_name_is_fetched_and_a_file_name_is_not(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        resnet_weights, "fetched", lambda name, files, _: asked.append((name, files)) or tmp_path
    )
    write(tmp_path / "model.safetensors", random_state(18))
    found = resnet_weights.weights_file(18, "timm/resnet18.a1_in1k")
    assert asked == [("timm/resnet18.a1_in1k", ["model.safetensors"])] and found.parent == tmp_path
    for name in ("weights/resnet18.pth", "weights/w.safetensors", "/absent/folder/of/weights"):
        with pytest.raises(FileNotFoundError, match="download https"):
            resnet_weights.weights_file(18, name)
    assert len(asked) == 1


def test_weights_in_half_precision_are_taken(tmp_path):
    """As bfloat16, which NumPy does not have by itself, from both kinds of files."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch_file

    tensors = {name: torch.from_numpy(value).bfloat16() for name, value in random_state(18).items()}
    torch.save(tensors, tmp_path / "w.pth")
    save_torch_file(tensors, tmp_path / "w.safetensors")
    found = [resnet_weights.load_resnet(18, tmp_path / name) for name in ("w.pth", "w.safetensors")]
    jax.tree.map(np.testing.assert_array_equal, *found)
    kernel = tensors["conv1.weight"].float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found[0]["conv1"]["kernel"], kernel)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    tensors = random_state(18)
    tensors["layer1.0.se.weight"] = tensors.pop("layer4.1.bn2.running_var")
    tensors["conv1.weight"] = tensors["conv1.weight"].transpose(2, 3, 1, 0)
    with pytest.raises(ValueError) as caught:
        resnet_weights.load_resnet(18, write(tmp_path / "w.safetensors", tensors))
    for text in (
        "missing: layer4.1.bn2.running_var",
        "unexpected: layer1.0.se.weight",
        "conv1.weight is (7, 7, 3, 64) instead of (64, 3, 7, 7)",
        "resnet18-f37072fd.pth",
    ):
        assert text in str(caught.value)
    other = write(tmp_path / "18.safetensors", random_state(18))
    with pytest.raises(ValueError, match=r"missing: layer1\.2\.conv1\.weight"):
        resnet_weights.check_resnet(34, other)


@pytest.mark.parametrize(
    ("depth", "given", "text"),
    [
        (50, "", "resnet50-11ad3fa6.pth .*resnet50-0676ba61.pth.*weights=PATH.*timm/resnet50.a1_in1k"),
        (34, "weights/absent.pth", r"no weights file weights/absent.pth.*resnet34-b627a593"),
        (18, "absent.safetensors", "no weights file absent.safetensors.*resnet18-f37072fd"),
        (18, "$NOT_SET_ANYWHERE/w.pth", "NOT_SET_ANYWHERE is not set"),
    ],
)
def test_absent_weights_say_where_to_get_them(depth, given, text):
    with pytest.raises(FileNotFoundError, match=text):
        resnet_weights.load_resnet(depth, given)


@pytest.mark.slow
def test_pieces_have_the_features_of_the_whole(tmp_path):
    net, images = resnet.resnet(18), images_of(6, 32, 40)
    params = resnet_weights.load_resnet(18, write(tmp_path / "w.safetensors", random_state(18)))
    whole = jax.jit(lambda params, x: resnet.stages(18, params, x)["features"])
    expected, apply = whole(params, images.astype(np.float32)), jax.jit(net.apply)
    for n in (6, 3):  # a piece and a rest, and less than a piece
        features = apply(params, images[:n])
        assert features.shape == (n, net.width) == (n, 512) and features.dtype == np.float32
        np.testing.assert_allclose(features, expected[:n], rtol=1e-4, atol=1e-5)
    assert np.ptp(np.asarray(expected), axis=0).max() > 0.01  # images are told apart
    with pytest.raises(ValueError, match=r"ResNet-18 takes .*at least 32 x 32 pixels, got \(3, 31, 40, 3\)"):
        net.apply(params, images[:3, :31])
    with pytest.raises(ValueError, match="no ResNet of depth 101 here; use one of 18, 34, 50"):
        resnet.resnet(101)


def test_as_many_parameters_as_published():
    """25,557,032 of torchvision's ResNet-50 are 2,049,000 of the classifier, and 2 of each channel's norm."""
    shapes = jax.eval_shape(resnet.resnet(50).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 25_557_032 - 2_049_000
    shapes = jax.eval_shape(resnet.resnet(18).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 11_689_512 - 513_000


@pytest.mark.slow
def test_the_encoder_begins_with_the_pretrained_features(tmp_path):
    """To be trained end to end: its features at the start are the frozen ones, and all its weights have a gradient."""
    path = str(write(tmp_path / "w.safetensors", random_state(18)))
    net = make_encoder("resnet", (40, 40, 3), depth=18, weights=path)
    images, mask = images_of(3, 40, 40), np.ones(3, np.float32)
    params = jax.jit(net.init)(jax.random.key(5))
    frozen = jax.jit(resnet.resnet(18).apply)(resnet_weights.load_resnet(18, path), images)

    def spread(params):
        features = net.apply(params, images, mask)
        return features.std(), features

    (_, found), grads = jax.jit(jax.value_and_grad(spread, has_aux=True))(params)
    np.testing.assert_allclose(found, frozen, rtol=1e-5, atol=1e-6)
    assert found.shape == (3, net.width) == (3, 512) and net.independent
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    half = make_encoder("resnet", (40, 40, 3), depth=18, weights=path, dtype="bfloat16")
    near = np.asarray(jax.jit(half.apply)(params, images, mask))
    assert near.dtype == np.float32 and 0 < np.abs(near - found).max() < 0.05 * np.abs(found).max()
    plain = jax.eval_shape(make_encoder("resnet", (40, 40, 3), depth=18).init, jax.random.key(0))
    assert jax.tree.map(np.shape, plain) == jax.tree.map(np.shape, params)


def test_what_the_encoder_cannot_take_is_refused():
    with pytest.raises(ValueError, match=r"at least 32 x 32 .*\(1, 16, 16, 3\)"):
        make_encoder("resnet", (16, 16, 3), depth=18)
    with pytest.raises(ValueError, match="depth 20"):
        make_encoder("resnet", (40, 40, 3), depth=20)


@pytest.mark.slow
def test_other_weights_have_other_features_in_the_cache(tmp_path):
    items = images_of(5, 32, 32)
    digests = np.array([f"{i:064d}".encode() for i in range(5)])
    pool = Pool("spots", "things", ("a",), np.zeros(5, np.int32), items, digests)
    tensors, found = random_state(18), []
    for factor in (1, 1, 2):  # the second time from the cache
        tensors["layer4.1.bn2.bias"] = tensors["layer4.1.bn2.bias"] * factor
        params = resnet_weights.load_resnet(18, write(tmp_path / "w.safetensors", tensors))
        settings = dict(cache_dir=tmp_path / "cache", backbone_name="resnet18", batch=4)
        found.append(cache.embed_pools([pool], resnet.resnet(18), params, **settings)[0].x)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    np.testing.assert_array_equal(found[0], found[1])
    assert found[2].shape == (5, 512) and np.abs(found[2] - found[0]).max() > 0.1


@pytest.mark.parametrize(
    ("config", "argument", "size"),
    [
        ("loo", "backbone=resnet50", 224),
        ("loo", "backbone=squeezenet", 128),
        ("loo", "", 64),
        ("loo", "backbone=none", 32),
        ("loo", "backbone=resnet18,image_size=96", 96),
        ("sequential", "backbone=resnet34", 224),
        ("distances", "backbone=resnet18,image_size=64", 64),
        ("difficulty", "backbone=resnet18", 224),
        ("supervised", "backbone=resnet18", 224),
    ],
)
def test_images_have_the_size_of_the_backbone(config, argument, size):
    assert load_config(ROOT / "configs" / f"{config}.py", argument).data.image_size == size


def test_the_whole_backbone_is_fine_tuned_by_its_depth():
    config = load_config(ROOT / "configs" / "difficulty.py", "backbone=resnet34,weights=w,recipe=finetune")
    learner = config.learners[config.learner]
    assert learner.encoder == "resnet"
    assert learner.encoder_settings.to_dict() == dict(depth=34, weights="w", normalize="sqrt_unit")


def test_an_album_is_embedded_by_a_resnet(tmp_path):
    path = str(write(tmp_path / "w.safetensors", random_state(18)))
    settings = dict(image_size=32, backbone="resnet18", weights=path, cache=str(tmp_path / "cache"))
    small = dict(embedded=dict(seed=0, classes=2, images_per_class=2), datasets=("gears",))
    (pool,) = album_pools(ConfigDict(defaults.album("embedded", **settings, **small)))
    assert pool.x.shape == (4, 512) and np.isfinite(pool.x).all() and pool.phashes is not None
