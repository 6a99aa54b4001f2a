# SPDX-License-Identifier: Apache-2.0
"""What the report of one kind of experiment has beside the comparison of learners: a table, rows, figures."""

from collections.abc import Sequence
from typing import NamedTuple

from metaicl.report import difficulty, outsiders, overlap, relation_figures, relations
from metaicl.report.reading import Record
from metaicl.report.style import STYLE, Drawing
from metaicl.report.tables import Table


class Section(NamedTuple):
    """A headline table, those to stand behind the figures, what goes to `results.json`, and figures."""

    table: Table
    late: list[Table]
    rows: list[dict]
    matrices: dict[str, dict]
    drawings: list[Drawing]


def sections(records: Sequence[Record]) -> list[Section]:
    """The sections that the records of an experiment have enough for."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        makers = (_relation, _difficulty, _overlap, _outsiders)
        return [section for make in makers if (section := make(records))]


def _relation(records: Sequence[Record]) -> Section | None:
    study = relations.load_study(records)
    if study is None:
        return None
    found = relations.findings(study)
    return Section(
        relations.finding_table(study, found),
        [relations.target_table(study)],
        relations.relation_rows(study, found),
        relations.relation_matrices(study),
        relation_figures.draw_relations(study, found),
    )


def _difficulty(records: Sequence[Record]) -> Section | None:
    found = difficulty.load_difficulty(records)
    if found is None:
        return None
    rows, drawing = difficulty.difficulty_rows(found), difficulty.draw_difficulty(found)
    return Section(difficulty.difficulty_table(found), [], rows, {}, [drawing])


def _overlap(records: Sequence[Record]) -> Section | None:
    found = overlap.load_overlap(records)
    if found is None:
        return None
    table, drawing = overlap.overlap_table(found), overlap.draw_overlap(found)
    return Section(table, [], overlap.overlap_rows(found), {}, [drawing])


def _outsiders(records: Sequence[Record]) -> Section | None:
    table = outsiders.outsider_table(records)
    return None if table is None else Section(table, [], [], {}, [])  # its rows are those of the records
