# SPDX-License-Identifier: Apache-2.0
"""Frozen backbones over Pools, cached by content."""
