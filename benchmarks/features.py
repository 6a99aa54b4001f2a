# SPDX-License-Identifier: Apache-2.0
"""Images a second that a frozen backbone turns into features, against PyTorch.

    python -m benchmarks.features --json             ResNet-50 at 224 px and SqueezeNet at 128 px, 64 images at a time
    python -m benchmarks.features --json --quick     16 images at a time, three rounds, no compiled peer

Random weights, random images as bytes on the host, features back on the host: normalisation and both transfers are
within the time, decoding is not. Ours is what `embed_pools` calls. The peers (`features_peers`) are PyTorch in
evaluation and inference mode, channels last, with as many threads as there are cores, as it is and compiled by
`torch.compile`. Their features have to equal ours. The ratios are against the faster of them, in float32 on a CPU; on
a GPU each library's own default for float32 convolutions is left (`--dtype=bfloat16` measures ours in that).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from benchmarks.timing import alternate, command_of, compared, median, options_of, progress, tell
from metaicl.models import resnet, resnet_weights, squeezenet

SIZES = {"resnet50": 224, "squeezenet": 128}
TARGETS = {"resnet50": 1.0, "squeezenet": 1.0}
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # of the largest difference over the largest feature
Peers = Callable[[np.ndarray, bool], Callable[[], np.ndarray]]


def random_tensors() -> dict[str, np.ndarray]:
    """A ResNet-50's weights under torchvision's names; activations stay of order one."""
    rng, tensors = np.random.default_rng(0), {}
    for name, shape in resnet_weights.expected_shapes(50).items():
        values = rng.uniform(0.5, 1.0, shape)
        if len(shape) == 4:
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("bn3.weight", "downsample.1.weight")):
            values = values / 2  # two branches are added
        elif name.endswith((".bias", "running_mean")):
            values = rng.standard_normal(shape) / 10
        tensors[name] = values.astype(np.float32)
    return tensors


def networks(dtype: str) -> dict[str, tuple[Any, Any, Peers]]:
    """Backbone, parameters and the maker of peers, by name."""
    tensors = random_tensors()
    params = resnet_weights.from_tensors(50, tensors)
    small = squeezenet.squeezenet()
    small_params = jax.jit(small.init)(jax.random.key(0))
    flat = flatten_dict(small_params, sep="/")

    def peer_resnet(images, compiled):
        from benchmarks.features_peers import resnet50

        return resnet50(tensors, images, compiled)

    def peer_squeezenet(images, compiled):
        from benchmarks.features_peers import squeezenet as of

        return of(flat, images, compiled)

    return {
        "resnet50": (resnet.resnet(50, dtype), params, peer_resnet),
        "squeezenet": (small, small_params, peer_squeezenet),
    }


def compare(name: str, network: tuple, images: np.ndarray, rounds: int, compiled: bool, dtype: str):
    """Checks, then times, ours and each peer."""
    backbone, params, make_peer = network
    apply = jax.jit(backbone.apply)
    params = jax.device_put(params)
    ours = lambda: np.asarray(apply(params, images))
    work, differences = {"ours": ours}, {}
    expected = ours()
    for peer, compiles in {"torch": False, "torch_compiled": True}.items():
        if compiles and not compiled:
            continue
        try:
            embed = make_peer(images, compiles)
            far = float(np.abs(embed() - expected).max() / np.abs(expected).max())
        except Exception as error:  # of the compiler, which has many
            if not compiles:
                raise
            progress(f"  {peer}: not compiled: {type(error).__name__}: {error}".splitlines()[0])
            continue
        differences[peer] = float(f"{far:.2g}")
        if not far <= TOLERANCE[dtype]:
            raise SystemExit(f"{name}: features of {peer} differ from ours by {far:.2g} of the largest.")
        work[peer] = embed
    return alternate(work, rounds), differences


def rates(name: str, network: tuple, batch: int, rounds: int, compiled: bool, dtype: str) -> dict[str, Any]:
    """The figures of one network."""
    side = SIZES[name]
    images = np.random.default_rng(1).integers(0, 256, (batch, side, side, 3)).astype(np.uint8)
    progress(f"{name}: comparing and timing")
    seconds, differences = compare(name, network, images, rounds, compiled, dtype)
    medians = {who: median(taken) for who, taken in seconds.items()}
    figures: dict[str, Any] = {}
    peers = [taken for who, taken in medians.items() if who != "ours"]
    figures |= compared(name, min(peers), medians["ours"], TARGETS[name])
    figures[f"{name}_images_per_s"] = {who: round(batch / taken, 1) for who, taken in medians.items()}
    figures[f"{name}_difference"] = differences
    figures[f"{name}_raw_seconds"] = {who: [round(t, 4) for t in taken] for who, taken in seconds.items()}
    progress(f"  images a second: {figures[f'{name}_images_per_s']}")
    return figures


def main() -> None:
    """Measures and prints; the last line is JSON."""
    parser = options_of(__doc__, rounds=7, quick="16 images, three rounds, no compiled peer")
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
    parser.add_argument("--only", choices=tuple(SIZES), help="one of the networks")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32", help="of our ResNet-50")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    batch, rounds = (16, 3) if options.quick else (options.batch, options.rounds)
    figures: dict[str, Any] = {
        **command_of("features"),
        "batch": batch,
        "dtype": options.dtype,
        "torch": torch.__version__,
    }
    for name, network in networks(options.dtype).items():
        if options.only in (None, name):
            figures |= rates(name, network, batch, rounds, not options.quick, options.dtype)
    tell(figures, as_json=options.json)


if __name__ == "__main__":
    main()
