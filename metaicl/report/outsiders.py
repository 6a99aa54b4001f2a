# SPDX-License-Identifier: Apache-2.0
"""How well scores of answers tell queries of the episode's classes from queries that are of none."""

from collections import defaultdict
from collections.abc import Sequence

from metaicl.report.reading import OUT_OF_SCOPE, Record, label_learners, span
from metaicl.report.statistics import cells_of, grand_mean, hierarchical_bootstrap
from metaicl.report.tables import Cell, Table, best_of, format_interval, measured, pretty

AREA = "auroc_"  # what metrics are called, before the name of a score


def outsider_table(records: Sequence[Record]) -> Table | None:
    """Learners by scores, the area under the ROC curve in each place; None where nobody measured it."""
    chosen = [r for r in records if r["evaluation"] == OUT_OF_SCOPE]
    tested = [r for r in chosen if r["split"] == "test"] or chosen
    if not tested:
        return None
    metrics = list(dict.fromkeys(m for r in tested for m in r["values"] if m.startswith(AREA)))
    by_learner = defaultdict(list)
    for record in label_learners(tested):
        by_learner[record["label"]].append(record)
    names = sorted(by_learner, key=lambda x: -grand_mean(cells_of(by_learner[x], metrics[0])))
    columns = []
    for metric in metrics:
        found = [hierarchical_bootstrap(cells_of(by_learner[name], metric)) for name in names]
        best = best_of([interval.mean for interval in found], largest=True)
        columns.append([Cell(format_interval(i, metric), k in best) for k, i in enumerate(found)])
    rows = [(pretty(name), [column[k] for column in columns]) for k, name in enumerate(names)]
    notes = [
        f"{measured(tested)}; area under the ROC curve: how often a query of the episode's classes scores higher than "
        "one of none, a tie counting half; chance is 0.5.",
        "confidence: the largest probability; energy: the logarithm of the sum of the exponentials of the outputs.",
        "± is half the 95 % interval of a hierarchical bootstrap over domains, data sets, seeds and episodes.",
    ]
    ways, shots = (span([r[key] for r in tested]) for key in ("ways", "shots"))
    title = f"out-of-scope detection, AUROC, {ways}-way {shots}-shot"
    return Table(title, "learner", [pretty(m.removeprefix(AREA)) for m in metrics], rows, notes)
