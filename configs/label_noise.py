# SPDX-License-Identifier: Apache-2.0
"""What do wrong labels in the support do, at test and at training?

    python -m metaicl.main --config=configs/label_noise.py                       the embedded album, no download
    python -m metaicl.main --config=configs/label_noise.py:quick
    python -m metaicl.main --config=configs/label_noise.py:album=PATH,backbone=squeezenet,weights=PATH,seeds=3

Leaves one domain out as `configs/loo.py` does, whose arguments these are. Learners that train with none, a tenth, a
quarter or half of the support labels replaced by another label of the task are tested with 0 to 50 % of them replaced,
beside the closed-form learners; query labels stay right. The study (arXiv 2507.05019) reports that 10 to 25 % do
little, and that a little noise in training sometimes helps; its figures are not at hand.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import load_config_file

loo = load_config_file("loo", beside=__file__)

TRAINING = (0.0, 0.1, 0.25, 0.5)
TEST = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5)
BASELINES = ("centroid", "ridge", "logistic", "knn")


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = loo.parse(argument)
    config = loo.get_config(loo.with_one_learner(argument, arg, domains=2))
    config.baselines = BASELINES
    config.evaluate.update(label_noise=TEST[::3] if arg.quick else TEST, shot_curve=())
    shares = TRAINING[::2] if arg.quick else TRAINING
    defaults.varied(config, {f"trained with {100 * x:.0f}% wrong": {"task.label_noise": x} for x in shares})
    return config
