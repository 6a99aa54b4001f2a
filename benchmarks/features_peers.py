# SPDX-License-Identifier: Apache-2.0
"""ResNet-50 and SqueezeNet in PyTorch as one writes them for speed: evaluation mode, channels last, inference mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

Embed = Callable[[], np.ndarray]


class Bottleneck(nn.Module):
    """torchvision's, v1.5: the 3 x 3 convolution has the stride."""

    def __init__(self, below: int, channels: int, stride: int):
        super().__init__()
        wide = 4 * channels
        self.conv1, self.bn1 = nn.Conv2d(below, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or below != wide:
            conv = nn.Conv2d(below, wide, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(wide))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, c, h, w]` to four times the channels."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet50(nn.Module):
    """torchvision's ResNet-50 up to its global average, under the same names."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        below = 64
        for layer, (blocks, channels) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
            made = []
            for i in range(blocks):
                made.append(Bottleneck(below, channels, 2 if layer > 1 and i == 0 else 1))
                below = 4 * channels
            setattr(self, f"layer{layer}", nn.Sequential(*made))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, 3, h, w]` to `[n, 2048]`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


class Fire(nn.Module):
    """A squeeze and two expansions beside each other."""

    def __init__(self, below: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(below, squeeze, 1)
        self.expand1x1, self.expand3x3 = (
            nn.Conv2d(squeeze, expand, 1),
            nn.Conv2d(squeeze, expand, 3, padding=1),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, c, h, w]` to twice `expand` channels."""
        x = self.relu(self.squeeze1x1(x))
        return torch.cat([self.relu(self.expand1x1(x)), self.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 up to its global average."""

    def __init__(self):
        super().__init__()
        self.conv1, self.pool = nn.Conv2d(3, 64, 3, 2), nn.MaxPool2d(3, 2)
        self.relu, below = nn.ReLU(inplace=True), 64
        for i, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64), 2):
            setattr(self, f"fire{i}", Fire(below, squeeze, 4 * squeeze))
            below = 8 * squeeze

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, 3, h, w]` to `[n, 512]`."""
        x = self.relu(self.conv1(x))
        for i in range(2, 10):
            x = getattr(self, f"fire{i}")(self.pool(x) if i in (2, 4, 6) else x)
        return x.mean(dim=(2, 3))


def _ready(net: nn.Module, tensors: Mapping[str, np.ndarray]) -> nn.Module:
    """A network with these weights, set up for inference on the fastest device; counters of batches may lack."""
    state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
        raise ValueError(f"Weights do not fit the peer: missing {missing}, unexpected {unexpected}.")
    return net.eval().to(_device(), memory_format=torch.channels_last)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def resnet50(tensors: Mapping[str, np.ndarray], images: np.ndarray, compiled: bool) -> Embed:
    """A function that embeds `uint8 [n, h, w, 3]`, normalisation within; `tensors` under torchvision's names."""
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    prepare = lambda x: x.float().div_(255).sub_(_channels(mean)).div_(_channels(std))
    return _embedding(_ready(ResNet50(), tensors), prepare, images, compiled)


def squeezenet(params: Mapping[str, Any], images: np.ndarray, compiled: bool) -> Embed:
    """The same of SqueezeNet, from our parameters: `fire2/squeeze1x1/kernel`, kernels h, w, in, out."""
    tensors = {}
    for name, value in params.items():
        scope, leaf = name.replace("/", ".").rsplit(".", 1)
        array = np.asarray(value)
        tensors[f"{scope}.{'weight' if leaf == 'kernel' else leaf}"] = (
            array.transpose(3, 2, 0, 1) if leaf == "kernel" else array
        )
    prepare = lambda x: x.float().flip(1).sub_(_channels([103.939, 116.779, 123.68]))
    return _embedding(_ready(SqueezeNet(), tensors), prepare, images, compiled)


def _channels(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, device=_device()).view(1, -1, 1, 1)


def _embedding(net: nn.Module, prepare: Callable, images: np.ndarray, compiled: bool) -> Embed:
    whole = lambda x: net(prepare(x).contiguous(memory_format=torch.channels_last))
    if compiled:
        whole = torch.compile(whole)

    @torch.inference_mode()
    def embed() -> np.ndarray:
        # A permuted view of [n, h, w, 3] is channels last already: nothing is copied.
        return whole(torch.from_numpy(images).to(_device()).permute(0, 3, 1, 2)).cpu().numpy()

    return embed
