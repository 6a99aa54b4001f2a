# SPDX-License-Identifier: Apache-2.0
"""Array-to-array networks. flax.linen lives here and nowhere else."""
