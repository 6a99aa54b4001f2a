# SPDX-License-Identifier: Apache-2.0
"""MAML, FOMAML and Reptile on conv-4 in PyTorch, in the two ways that its users write them.

`autograd`: functional weights, `torch.autograd.grad` and a loop over the tasks. `func`: `torch.func`, with
`functional_call` of a module and `vmap` over the tasks. Weights are dictionaries of tensors in PyTorch's layout;
`to_torch` and `to_jax` turn ours into them and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

LAYERS, FILTERS, EPSILON = 4, 64, 1e-5
Tensors = dict[str, torch.Tensor]
Forward = Callable[[Tensors, torch.Tensor], torch.Tensor]  # weights and items to outputs [n, N]


class Tasks(NamedTuple):
    """A batch of tasks: images `[B, n, 1, h, w]`, labels `[B, n]`; `rows [B, steps, m]` where minibatches are drawn."""

    support_x: torch.Tensor
    support_y: torch.Tensor
    query_x: torch.Tensor
    query_y: torch.Tensor
    rows: torch.Tensor | None = None


def to_torch(params: dict[str, Any], side: int, stride: int) -> Tensors:
    """Our weights in PyTorch's names and layout.

    With `stride` 2, kernels are turned by 180 degrees, as `tasks_to_torch` turns the images: `padding=1` puts the
    unequal border of an even image in front, our SAME behind. `side` is that of the last feature map.
    """
    turn = _turn(stride)
    encoder, head = _numpy(params["encoder"]), _numpy(params["head"])
    weights = {}
    for i in range(LAYERS):
        weights[f"{i}.conv.weight"] = encoder[f"kernel_{i}"][turn, turn].transpose(3, 2, 0, 1)
        weights[f"{i}.conv.bias"] = encoder[f"bias_{i}"]
        weights[f"{i}.norm.weight"] = encoder[f"scale_{i}"]
        weights[f"{i}.norm.bias"] = encoder[f"offset_{i}"]
    kernel = head["kernel"].reshape(side, side, FILTERS, -1)[turn, turn]
    weights["head.weight"] = kernel.transpose(3, 2, 0, 1).reshape(kernel.shape[-1], -1)
    weights["head.bias"] = head["bias"]
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in weights.items()}


def to_jax(weights: Tensors, side: int, stride: int) -> dict[str, Any]:
    """The inverse of `to_torch`, as NumPy arrays."""
    turn = _turn(stride)
    w = {name: value.detach().numpy() for name, value in weights.items()}
    encoder = {}
    for i in range(LAYERS):
        encoder[f"kernel_{i}"] = w[f"{i}.conv.weight"].transpose(2, 3, 1, 0)[turn, turn]
        encoder[f"bias_{i}"] = w[f"{i}.conv.bias"]
        encoder[f"scale_{i}"] = w[f"{i}.norm.weight"]
        encoder[f"offset_{i}"] = w[f"{i}.norm.bias"]
    kernel = w["head.weight"].reshape(-1, FILTERS, side, side).transpose(2, 3, 1, 0)[turn, turn]
    head = {"kernel": kernel.reshape(side * side * FILTERS, -1), "bias": w["head.bias"]}
    return {"encoder": encoder, "head": head}


def _turn(stride):
    return slice(None, None, -1 if stride == 2 else 1)


def _numpy(arrays):
    return {name: np.asarray(value) for name, value in arrays.items()}


def tasks_to_torch(episodes, stride: int, rows=None) -> Tasks:
    """Our batch of episodes (images `[B, n, h, w, 1]`), every image turned by 180 degrees with `stride` 2."""
    turn = _turn(stride)

    def images(examples):
        turned = np.asarray(examples.x)[:, :, turn, turn].transpose(0, 1, 4, 2, 3)
        return torch.from_numpy(np.array(turned, order="C"))

    labels = lambda examples: torch.from_numpy(np.array(examples.y)).long()
    support, query = episodes.support, episodes.query
    drawn = None if rows is None else torch.from_numpy(np.array(rows)).long()
    return Tasks(images(support), labels(support), images(query), labels(query), drawn)


def forward(weights: Tensors, x: torch.Tensor, stride: int) -> torch.Tensor:
    """Conv-4 with functional weights: `[n, 1, h, w] -> [n, N]`; max pooling with `stride` 1."""
    for i in range(LAYERS):
        x = F.conv2d(x, weights[f"{i}.conv.weight"], weights[f"{i}.conv.bias"], stride=stride, padding=1)
        scale, offset = weights[f"{i}.norm.weight"], weights[f"{i}.norm.bias"]
        x = F.relu(F.batch_norm(x, None, None, scale, offset, training=True, eps=EPSILON))
        if stride == 1:
            x = F.max_pool2d(x, 2)
    return F.linear(x.flatten(1), weights["head.weight"], weights["head.bias"])


def called(module: torch.nn.Module) -> Forward:
    """A module as a function of its weights."""
    return lambda weights, x: torch.func.functional_call(module, weights, (x,))


class Block(torch.nn.Module):
    """Convolution, batch norm, ReLU and, with `stride` 1, max pooling."""

    def __init__(self, channels: int, stride: int):
        """Builds the layers; their weights are replaced at every call."""
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, FILTERS, 3, stride=stride, padding=1)
        self.norm = torch.nn.BatchNorm2d(FILTERS, eps=EPSILON, track_running_stats=False)
        self.pool = torch.nn.MaxPool2d(2) if stride == 1 else torch.nn.Identity()

    def forward(self, x):
        """`[n, c, h, w] -> [n, FILTERS, h / 2, w / 2]`."""
        return self.pool(F.relu(self.norm(self.conv(x))))


class Conv4(torch.nn.Module):
    """Conv-4 as a module, for `functional_call`."""

    def __init__(self, stride: int, features: int, ways: int):
        """Builds the layers; their weights are replaced at every call."""
        super().__init__()
        for i in range(LAYERS):
            self.add_module(str(i), Block(FILTERS if i else 1, stride))
        self.head = torch.nn.Linear(features, ways)

    def forward(self, x):
        """`[n, 1, h, w] -> [n, N]`."""
        for i in range(LAYERS):
            x = self.get_submodule(str(i))(x)
        return self.head(x.flatten(1))


def autograd_maml(
    forward: Forward, steps: int, rate: float, second: bool
) -> Callable[[Tensors, Tasks], Tensors]:
    """`(weights, tasks) -> meta-gradient` by `torch.autograd.grad`, one task after another."""

    def meta_gradient(weights, tasks):
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        for sx, sy, qx, qy in zip(*tasks[:4], strict=True):
            fast = weights
            for _ in range(steps):
                loss = F.cross_entropy(forward(fast, sx), sy)
                grads = torch.autograd.grad(loss, list(fast.values()), create_graph=second)
                fast = {name: w - rate * g for (name, w), g in zip(fast.items(), grads, strict=True)}
            loss = F.cross_entropy(forward(fast, qx), qy) / len(tasks.support_x)
            grads = torch.autograd.grad(loss, list(weights.values()))
            for (name, old), g in zip(total.items(), grads, strict=True):
                total[name] = old + g
        return total

    return meta_gradient


def func_maml(forward: Forward, steps: int, rate: float, second: bool) -> Callable[[Tensors, Tasks], Tensors]:
    """`(weights, tasks) -> meta-gradient` by `torch.func`, the tasks side by side under `vmap`."""

    def loss(weights, x, y):
        return F.cross_entropy(forward(weights, x), y)

    def task_loss(weights, sx, sy, qx, qy):
        fast = weights
        for _ in range(steps):
            grads = torch.func.grad(loss)(fast, sx, sy)
            grads = grads if second else {name: g.detach() for name, g in grads.items()}
            fast = {name: w - rate * grads[name] for name, w in fast.items()}
        return loss(fast, qx, qy)

    def batch_loss(weights, tasks):
        return torch.func.vmap(task_loss, in_dims=(None, 0, 0, 0, 0))(weights, *tasks[:4]).mean()

    gradient = torch.func.grad(batch_loss)
    return lambda weights, tasks: gradient({name: w.detach() for name, w in weights.items()}, tasks)


def autograd_reptile(rate: float) -> Callable[[Tensors, Tasks], Tensors]:
    """`(weights, tasks) -> pseudo-gradient`: a loop over tasks of plain SGD on copied weights."""

    def pseudo_gradient(weights, tasks):
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        assert tasks.rows is not None
        for sx, sy, qx, qy, rows in zip(*tasks, strict=True):
            fast = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
            for chosen in rows:
                loss = F.cross_entropy(forward(fast, sx[chosen], 2), sy[chosen])
                grads = torch.autograd.grad(loss, list(fast.values()))
                with torch.no_grad():
                    for w, g in zip(fast.values(), grads, strict=True):
                        w -= rate * g
            with torch.no_grad():
                F.cross_entropy(forward(fast, qx, 2), qy)  # what a training log shows; ours has it too
                for name, old in total.items():
                    total[name] = old + (weights[name] - fast[name]) / len(tasks.rows)
        return total

    return pseudo_gradient


def func_reptile(rate: float, features: int, ways: int) -> Callable[[Tensors, Tasks], Tensors]:
    """`(weights, tasks) -> pseudo-gradient` by `torch.func`, the tasks side by side under `vmap`."""
    module = Conv4(2, features, ways)

    def loss(weights, x, y):
        return F.cross_entropy(torch.func.functional_call(module, weights, (x,)), y)

    def one(weights, sx, sy, qx, qy, rows):
        fast = weights
        for chosen in rows:
            grads = torch.func.grad(loss)(fast, sx[chosen], sy[chosen])
            fast = {name: w - rate * grads[name] for name, w in fast.items()}
        return {name: w - fast[name] for name, w in weights.items()}, loss(fast, qx, qy)

    def pseudo_gradient(weights, tasks):
        with torch.no_grad():
            moves, _ = torch.func.vmap(one, in_dims=(None, 0, 0, 0, 0, 0))(weights, *tasks)
            return {name: move.mean(0) for name, move in moves.items()}

    return pseudo_gradient


def outer_step(
    meta_gradient: Callable[[Tensors, Tasks], Tensors],
    weights: Tensors,
    tasks: Tasks,
    optimizer: Callable[[Sequence[torch.Tensor]], torch.optim.Optimizer],
) -> Callable[[], None]:
    """One whole step that moves its own copy of the weights every time it is called."""
    weights = {name: w.clone().requires_grad_() for name, w in weights.items()}
    update = optimizer(list(weights.values()))

    def step():
        for w, g in zip(weights.values(), meta_gradient(weights, tasks).values(), strict=True):
            w.grad = g
        update.step()

    return step
