# SPDX-License-Identifier: Apache-2.0
"""metaicl: learning to learn from a handful of examples, in JAX."""

__version__ = "0.1.0"
