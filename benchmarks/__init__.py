# SPDX-License-Identifier: Apache-2.0
"""One file per speed claim, each with its peer in the same run: `python -m benchmarks.NAME --json`."""
