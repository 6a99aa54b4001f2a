# SPDX-License-Identifier: Apache-2.0
"""Pools of labelled items, how they are read and split, and how episodes are drawn from them."""
