# SPDX-License-Identifier: Apache-2.0
"""Why learners learn: quantities of their gradients, measured against what theory says of them."""
