# SPDX-License-Identifier: Apache-2.0
"""Why MAML, FOMAML and Reptile do much the same: the leading terms of their gradients (Nichol et al. 2018, 5.1).

Each moves along c_grad AvgGrad - a c_inner AvgGradInner. The first term is joint training, the second raises the
inner product of the gradients of a task's minibatches: a step on one of them then helps the others. The coefficients
are measured on sine curves and compared with theory: MAML (1, 2 (k - 1)), FOMAML (1, k - 1), Reptile
(k, k (k - 1) / 2), for k minibatches.

    python -m metaicl.main --config=configs/taylor.py          k = 2 .. 8, a few minutes on two cores
    python -m metaicl.main --config=configs/taylor.py:quick    k = 2, 4

Expected: relative errors under 0.02. Family, network (40-40, tanh, for a relu has no curvature), inner step and
seeds are our choice; the computation is in 64 bits.
"""

from ml_collections import ConfigDict

from metaicl.configuration import named, parse_argument


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, dict(inner_lr=1e-4))
    config = ConfigDict()
    config.measure = dict(
        kind="taylor",
        method="maml",
        minibatches=(2, 4) if arg.quick else (2, 3, 4, 5, 6, 7, 8),
        inner_lr=arg.inner_lr,
        batch=10,
        tasks=50 if arg.full else 10,
        seeds=10 if arg.full else 3,
        network=dict(hidden=(40, 40), activation="tanh"),
    )
    config.runs = named(
        {f"method={name}": {"measure.method": name} for name in ("maml", "fomaml", "reptile")}
    )
    return config
