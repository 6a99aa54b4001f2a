# SPDX-License-Identifier: Apache-2.0
"""Classify your own sentences by a few labelled ones.

    python -m metaicl.predict --run=WORKDIR/RUN --support=support.csv --query=query.csv --out=answers.csv
    python -m metaicl.predict --config=configs/text.py:learner=logistic,weights=PATH --support=... --query=... --out=...

The first takes the learner of a finished run of configs/text.py, the second any learner of the config as it begins,
without training. The support is a .csv, .tsv or .jsonl file of `text` and `label`, the queries one of `text`. The
answers are a csv file: text, predicted label, its probability, and the probability of every label. Probabilities are
calibrated by cross-validation on the support where every label has two sentences or more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from metaicl.command_line import exit_status, run_command


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    given = vars(_parser().parse_args(argv[1:]))
    debug = given.pop("debug")
    asked = {name: given.pop(name) for name in ("score", "accepted", "threshold")}

    def work() -> None:
        if bool(given["run"]) == bool(given["config"]):
            raise ValueError("Give --run=WORKDIR/RUN, or --config=configs/text.py:learner=..., one of them.")
        default = {"score": "confidence", "accepted": 0.95, "threshold": None}
        if asked != default and not given["out_of_scope"]:
            raise ValueError("--score, --accepted and --threshold need --out_of_scope.")
        # Heavy: not before the arguments are right.
        from metaicl.experiment.predicting import Scope, predict_file

        given["out_of_scope"] = Scope(**asked) if given["out_of_scope"] else None
        print(predict_file(**given))

    return exit_status(work, debug=debug, interrupted="Nothing was written.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metaicl.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", default="", help="folder of a finished run, WORKDIR/RUN")
    parser.add_argument("--config", default="", help="config file with its argument; no meta-training")
    parser.add_argument("--support", required=True, help="labelled sentences: .csv, .tsv or .jsonl")
    parser.add_argument(
        "--query", required=True, help="sentences to label; labels, if any, are only compared"
    )
    parser.add_argument("--out", required=True, help="csv file to write")
    parser.add_argument(
        "--replica", default="", help="whose weights, of a run of several; the first by default"
    )
    parser.add_argument(
        "--weights", default="", help="the pretrained encoder, if not where it was in training"
    )
    parser.add_argument(
        "--folds", type=int, default=5, help="of the cross-validation; 0: none, temperature 1 (default 5)"
    )
    group = parser.add_argument_group("queries that belong to none of the labels")
    group.add_argument(
        "--out_of_scope", action="store_true", help="add a score and a decision for every query"
    )
    group.add_argument(
        "--score", choices=("confidence", "energy"), default="confidence", help="default confidence"
    )
    group.add_argument(
        "--accepted", type=float, default=0.95, help="share of in-scope sentences to accept (default 0.95)"
    )
    group.add_argument("--threshold", type=float, help="of the score, instead of --accepted")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    run_command(main)
