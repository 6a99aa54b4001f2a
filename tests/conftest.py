# SPDX-License-Identifier: Apache-2.0
"""Settings and fixtures that every test shares. Flags of XLA must be set before jax is imported."""

from __future__ import annotations

import os

DEVICES = 8

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={DEVICES}"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["MPLBACKEND"] = "Agg"

import jax  # noqa: E402
import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

matplotlib.use("Agg")
# A missing axis shows up as an error and not as a broadcast.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Grain's worker processes read absl flags, which nobody parses under pytest.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def devices() -> list:
    """The simulated devices."""
    found = jax.devices()
    assert len(found) == DEVICES, "jax was imported before tests/conftest.py could set XLA_FLAGS"
    return found


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded NumPy randomness, fresh for every test."""
    return np.random.default_rng(0)


@pytest.fixture
def x64():
    """64-bit floats for the length of a test."""
    with jax.enable_x64(True):
        yield
