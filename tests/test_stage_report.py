# SPDX-License-Identifier: Apache-2.0
"""The report of training in stages says what its rows say: numbers computed by hand."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from metaicl import report
from metaicl.files import save_arrays
from metaicl.report import reading, sequences, stage_figures
from metaicl.report.stages import load_stages

SETS, DOMAINS, QUERIES = ["a", "b", "c"], ["x", "x", "y"], 10
# Right answers of 10 after no, one, two and three stages, a then b then c.
ROWS = np.array([[2, 2, 3], [8, 4, 2], [5, 9, 4], [6, 7, 10]])
BETTER = np.array([[2, 2, 3], [5, 3, 9], [9, 4, 8], [9, 8, 9]])  # c then a then b
NOISE = np.array([1, -1, 0, 0])


def write_run(root, name, rows, adds, order, replay=False, seeds=(0, 1), learner="maml", budget="static"):
    """A finished run whose episodes differ by `NOISE`, which no mean sees; ends as the records of its last row."""
    folder = root / name
    (folder / "stages").mkdir(parents=True)
    episodes = np.clip(rows[..., None] + NOISE, 0, 10)  # [T + 1, P, E]
    episodes[rows == 10] = 10
    for number, row in enumerate(episodes):
        correct = np.stack([row for _ in seeds]).astype(np.uint8)  # [R, P, E]
        added = np.isin(np.arange(3), adds[number])
        save_arrays(folder / "stages" / f"{number:03}.npz", {"correct": correct, "adds": added})
    about = dict(learner=learner, order=order, replay=replay, budget=budget, stages=len(rows) - 1)
    about |= dict(datasets=SETS, domains=DOMAINS, queries=[QUERIES] * 3, seeds=list(seeds))
    about |= dict(replicas=[f"seed={s}" for s in seeds] if len(seeds) > 1 else [""])
    about |= dict(episodes=dict(seed=1000, start=0, count=len(NOISE)))
    (folder / "stages.json").write_text(json.dumps(about))
    (folder / "config.json").write_text(json.dumps({"learner": learner}))
    lines = [
        dict(run=name, replica=f"seed={s}", learner=learner, trained=True, dataset=SETS[d], domain=DOMAINS[d])
        | dict(ways=5, shots=5, seed=s, step=9, episodes=about["episodes"])
        | dict(values=dict(accuracy=(episodes[-1, d] / 10).tolist()))
        for s in seeds
        for d in range(3)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("report") / "sequential"
    write_run(root, "order=domain", ROWS, [[], [0], [1], [2]], "domain")
    write_run(root, "order=H2E", BETTER, [[], [2], [0], [1]], "H2E")
    write_run(root, "order=H2E,replay", BETTER, [[], [2], [0], [1]], "H2E", replay=True)
    write_run(root, "joint", np.array([[2, 2, 3], [7, 7, 9]]), [[], [0, 1, 2]], "joint")
    return root


def means(found) -> dict[str, float | None]:
    return {k: None if v is None else round(v.mean, 6) for k, v in found.items()}


def test_every_quantity_is_the_mean_over_domains(root):
    stages = load_stages(root / "order=domain")
    assert stages.accuracy.shape == (4, 3, 2, 4)
    np.testing.assert_allclose(stages.accuracy.mean(axis=(2, 3)), ROWS / 10)
    found = means(sequences.intervals("order=domain", stages))
    assert found == {
        "final_accuracy": pytest.approx((0.65 + 1.0) / 2),
        "accuracy_over_stages": pytest.approx(np.mean([(0.6 + 0.2) / 2, (0.7 + 0.4) / 2, (0.65 + 1) / 2])),
        "backward_transfer": pytest.approx(-0.2),  # domain x alone: c was trained last
        "backward_transfer_since_domain": pytest.approx(-0.05),
        "forward_transfer": pytest.approx((0.2 + 0.1) / 2),
        "learned_in_own_stage": pytest.approx(((0.6 + 0.5) / 2 + 0.6) / 2),
        "forgetting": pytest.approx(0.2),
    }
    joint = means(sequences.intervals("joint", load_stages(root / "joint")))
    assert joint.pop("final_accuracy") == pytest.approx(0.8)
    assert joint.pop("learned_in_own_stage") == pytest.approx(0.55)
    assert list(joint.values()) == [None] * 5  # one stage has no course and no transfer


def test_the_table_compares_the_orders(root):
    table = sequences.transfer_table(reading.load_runs(root))
    rows = {name: [cell.text for cell in cells] for name, cells in table.rows}
    assert list(rows) == ["H2E", "H2E, replay", "domain", "joint", "untrained"]
    number = lambda text: float(re.match(r"[+-]?\d+\.\d", text)[0])
    assert [number(rows[x][0]) for x in rows] == [87.5, 87.5, 82.5, 80.0, 25.0]
    assert number(rows["H2E"][2]) == 5.0 and rows["domain"][2] == "–"
    assert [number(text) for text in rows["domain"][3:]] == [-20.0, -5.0, 15.0, 57.5, 20.0]
    assert rows["joint"][1] == "–" and [text == "–" for text in rows["joint"][3:]] == [1, 1, 1, 0, 1]
    # a went from 0.9 to 0.9 and c from 0.9 to 0.9; x was complete with the last stage.
    assert [number(text) for text in rows["H2E"][3:5]] == [0.0, 0.0]
    assert table.rows[0][1][0].best and not table.rows[2][1][0].best


def test_the_course_of_backward_transfer_is_of_earlier_stages(root):
    course = sequences.backward_course("order=domain", load_stages(root / "order=domain"))
    # After b: a fell from 8 to 5. After c: a stands at 6 and b at 7 instead of 9, both of domain x.
    assert [round(i.mean, 6) for i in course] == [-0.3, -0.2]


def test_orders_are_compared_within_their_budget(tmp_path):
    root = tmp_path / "curricula"
    for budget, rows in (("static", ROWS), ("proportional", BETTER)):
        adds = [[], [0], [1], [2]]
        write_run(root, f"order=domain,budget={budget}", rows, adds, "domain", budget=budget)
        write_run(root, f"order=E2H,budget={budget}", ROWS, adds, "E2H", budget=budget)
    write_run(root, "joint", np.array([[2, 2, 3], [7, 7, 9]]), [[], [0, 1, 2]], "joint")
    table = sequences.transfer_table(reading.load_runs(root))
    rows = {name: cells[2].text for name, cells in table.rows}
    number = lambda name: float(re.match(r"[+-]?\d+\.\d", rows[name])[0])
    assert set(rows) - {"untrained"} == {
        *(f"{order}, {budget}" for order in ("domain", "E2H") for budget in ("static", "proportional")),
        "joint",
    }
    assert number("E2H, static") == 0.0 and number("E2H, proportional") == -5.0


def test_everything_is_in_the_report(root):
    said = report.write_report(root)
    assert "training in stages, test images" in said and "forgetting" in said
    assert max(map(len, said.splitlines())) <= 120
    drawn = {path.stem for path in (root / "figures").iterdir()}
    assert {"stages", "backward", "transfer_domain", "transfer_H2E", "transfer_H2E__replay"} <= drawn
    assert "transfer_joint" not in drawn
    results = json.loads((root / "results.json").read_text())
    matrix, rows = results["matrices"]["order=domain"], results["rows"]
    np.testing.assert_allclose(matrix["accuracy"], ROWS / 10)
    assert matrix["datasets"] == SETS and matrix["stages"] == ["0 untrained", "1 a", "2 b", "3 c"]
    (row,) = [r for r in rows if (r["run"], r["metric"]) == ("order=domain", "backward_transfer")]
    assert (
        row["mean"] == pytest.approx(-0.2) and row["ci95"] >= 0 and row["stages"] == 3 and row["seeds"] == 2
    )
    assert "Training in stages" in (root / "report.html").read_text()


def test_two_learners_are_told_apart(root, tmp_path):
    for learner in ("maml", "in_context"):
        write_run(tmp_path, f"order=domain,{learner}", ROWS, [[], [0], [1], [2]], "domain", learner=learner)
    labels = sequences.labelled(reading.load_runs(tmp_path))
    assert set(labels) == {"domain, maml", "domain, in context"}
    names = [name for name, _ in sequences.transfer_table(reading.load_runs(tmp_path)).rows]
    assert names[2:] == ["untrained in context", "untrained maml"]


def test_data_sets_that_no_stage_chose_are_left_out_of_the_map(tmp_path):
    write_run(tmp_path, "order=adaptive", ROWS, [[], [0], [1], [0]], "adaptive", seeds=(3,))
    stages = load_stages(tmp_path / "order=adaptive")
    assert stages.units == ["seed=3"]
    drawing = stage_figures.draw_change("adaptive", stages)
    assert "1 data sets that no stage chose" in drawing.caption
    # b is judged against stage 2, a (whose domain is complete then) too.
    found = means(sequences.intervals("order=adaptive", stages))
    assert found["backward_transfer"] == pytest.approx((-0.2 - 0.2) / 2)
    assert found["backward_transfer_since_domain"] == pytest.approx((0.1 - 0.2) / 2)


def test_a_row_that_is_gone_is_named(tmp_path):
    write_run(tmp_path, "order=domain", ROWS, [[], [0], [1], [2]], "domain")
    (tmp_path / "order=domain" / "stages" / "002.npz").unlink()
    with pytest.raises(ValueError, match=r"002\.npz is missing or damaged"):
        report.write_report(tmp_path)


def test_reports_without_stages_have_no_table_of_them(tmp_path):
    assert sequences.transfer_table([]) is None and stage_figures.draw_stages([]) == []
