# SPDX-License-Identifier: Apache-2.0
"""ResNets in PyTorch under torchvision's names, written from their description: the oracle of `test_resnet.py`."""

from __future__ import annotations

import numpy as np
import pytest

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def torch_resnet(depth: int, seed: int = 0):
    """A ResNet with random weights and random running statistics, in evaluation mode."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, below, channels, stride):
            super().__init__()
            wide = channels * (4 if depth >= 50 else 1)
            sizes = (1, 3, 1) if depth >= 50 else (3, 3)
            strides = (1, stride, 1) if depth >= 50 else (stride, 1)
            widths = (below, *[channels] * (len(sizes) - 1), wide)
            self.count = len(sizes)
            for i, (size, step) in enumerate(zip(sizes, strides, strict=True)):
                conv = nn.Conv2d(widths[i], widths[i + 1], size, step, size // 2, bias=False)
                setattr(self, f"conv{i + 1}", conv)
                setattr(self, f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
            self.downsample = None
            if stride != 1 or below != wide:
                conv = nn.Conv2d(below, wide, 1, stride, bias=False)
                self.downsample = nn.Sequential(conv, nn.BatchNorm2d(wide))

        def forward(self, x):
            y = x
            for i in range(1, self.count + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = torch.relu(y) if i < self.count else y
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            below = 64
            for layer, count in enumerate(BLOCKS[depth]):
                channels, blocks = 64 * 2**layer, []
                for i in range(count):
                    blocks.append(Block(below, channels, 2 if layer and not i else 1))
                    below = channels * (4 if depth >= 50 else 1)
                setattr(self, f"layer{layer + 1}", nn.Sequential(*blocks))
            self.fc = nn.Linear(below, 10)

        def forward(self, x):
            found = {"stem": nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)}
            x = found["stem"]
            for i in range(1, 5):
                x = found[f"layer{i}"] = getattr(self, f"layer{i}")(x)
            return found | {"features": x.mean(dim=(2, 3))}

    torch.manual_seed(seed)
    net = ResNet().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.2, 2.0)
    return net


def torch_stages(net, images: np.ndarray) -> dict[str, np.ndarray]:
    """Activations by stage, NHWC, of RGB `uint8 [n, h, w, 3]` normalised as torchvision's transforms do."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        found = net((x - mean) / std)
    return {k: v.permute(0, 2, 3, 1).numpy() if v.ndim == 4 else v.numpy() for k, v in found.items()}
