# SPDX-License-Identifier: Apache-2.0
"""The causal Transformer over x1, y1, x2, y2, ... in PyTorch, and the Lasso as a loop over scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


class Block(torch.nn.Module):
    """A pre-norm block with causal attention."""

    def __init__(self, width: int, heads: int):
        """Builds the layers."""
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = (torch.nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.mlp_in, self.mlp_out = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x):
        """`[B, T, D] -> [B, T, D]`."""
        q, k, v = (
            self.qkv(self.norm_1(x))
            .unflatten(-1, (3, self.heads, x.shape[-1] // self.heads))
            .permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm_2(x))))


class Causal(torch.nn.Module):
    """The learner `causal` for scalar labels; the answer is read at every x token."""

    def __init__(self, dimensions: int, width: int, layers: int, heads: int, max_points: int):
        """Builds the layers."""
        super().__init__()
        self.x, self.y = torch.nn.Linear(dimensions, width), torch.nn.Linear(1, width)
        self.positions = torch.nn.Parameter(torch.zeros(2 * max_points, width))
        self.blocks = torch.nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.readout = torch.nn.LayerNorm(width, eps=1e-6), torch.nn.Linear(width, 1)

    def forward(self, x, y):
        """`[B, n, d], [B, n, 1] -> [B, n, 1]`: the answer to every x from what is before it."""
        tokens = torch.stack([self.x(x), self.y(y)], dim=2).flatten(1, 2)
        tokens = tokens + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            tokens = block(tokens)
        return self.readout(self.norm(tokens[:, ::2]))


def names(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Our weights, or their gradient, in PyTorch's names and layout."""
    flat = {"positions": params["positions"]}
    for part in ("x", "y", "readout"):
        flat |= {f"{part}.weight": params[part]["kernel"].T, f"{part}.bias": params[part]["bias"]}
    for block, layers in params["transformer"].items():
        prefix = block.replace("_", ".") if block.startswith("blocks") else ""
        for layer, values in layers.items() if prefix else [(block, layers)]:
            name = f"{prefix}.{layer}" if prefix else layer
            weight = values["scale"] if "scale" in values else values["kernel"].T
            flat |= {f"{name}.weight": weight, f"{name}.bias": values["bias"]}
    return {name: np.asarray(value) for name, value in flat.items()}


def causal_of(params: dict[str, Any], heads: int) -> Causal:
    """The module with our weights, in their precision."""
    weights = {name: torch.tensor(value) for name, value in names(params).items()}
    points, width = weights["positions"].shape
    layers = sum(name.endswith("qkv.weight") for name in weights)
    module = Causal(weights["x.weight"].shape[1], width, layers, heads, points // 2)
    module = module.to(weights["positions"].dtype)
    module.load_state_dict(weights)
    return module


def gradient(module: Causal, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Of the loss at every prefix."""
    x, y = torch.tensor(x), torch.tensor(y)
    loss = F.mse_loss(module(x, y), y)
    grads = torch.autograd.grad(loss, list(module.parameters()))
    return {name: g.numpy() for (name, _), g in zip(module.named_parameters(), grads, strict=True)}


def training_step(module: Causal, x: np.ndarray, y: np.ndarray, rate: float, *, compiled: bool) -> Callable:
    """One whole step, with the fused Adam, that moves the module's weights at every call."""
    tensors = torch.tensor(x), torch.tensor(y)
    update = torch.optim.Adam(module.parameters(), rate, fused=True)
    run = torch.compile(module) if compiled else module

    def step():
        update.zero_grad(set_to_none=True)
        loss = F.mse_loss(run(*tensors), tensors[1])
        loss.backward()
        update.step()
        return loss.item()

    return step


def lasso_loop(x: np.ndarray, y: np.ndarray, alpha: float, tolerance: float) -> np.ndarray:
    """Coefficients of scikit-learn's Lasso for every prefix of every prompt: `[B, n, d]`, `[B, n]` -> `[B, n, d]`.

    Entry k is that of the first k examples; 0 for none. Where it does not converge, what it has.
    """
    from sklearn.linear_model import Lasso

    model = Lasso(alpha=alpha, fit_intercept=False, max_iter=100_000, tol=tolerance)
    found = np.zeros(x.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for b in range(len(x)):
            for k in range(1, x.shape[1]):
                found[b, k] = model.fit(x[b, :k], y[b, :k]).coef_
    return found
