# SPDX-License-Identifier: Apache-2.0
"""Records of an experiment with only what a test is about."""

from __future__ import annotations

import json

import numpy as np

from metaicl.report import reading


def simple(
    values, learner="a", dataset="d", domain="x", run="r", trained=False, metric="accuracy", **changes
):
    """A record as `load_records` gives it, with only what a test is about."""
    fields = {"run": run, "learner": learner, "dataset": dataset, "domain": domain, "trained": trained}
    return {
        **reading.DEFAULTS,
        **fields,
        "ways": 5,
        "shots": 5,
        "values": {metric: np.asarray(values, float)},
        **changes,
    }


def save(root, run, records):
    (root / run).mkdir(parents=True, exist_ok=True)
    lines = [{**r, "values": {k: list(v) for k, v in r["values"].items()}} for r in records]
    (root / run / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
