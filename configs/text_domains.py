# SPDX-License-Identifier: Apache-2.0
"""One encoder for ten domains, as tutorials on MAML and BERT set it up: 1,000 and 200 sentences each, one inner step.

    python -m metaicl.main --config=configs/text_domains.py
    python -m metaicl.main --config=configs/text_domains.py:weights=PATH,learner=maml+fomaml+finetune
    python -m metaicl.main --config=configs/text_domains.py:quick

Each domain of CLINC150 gives 1,000 of its 2,250 sentences to training and 200 to the test, the others to validation.
A task is five intents of one domain, five sentences of each in the support; the inner loop takes one gradient step, in
the test also ten (`10 steps`). The arguments are those of `configs/text.py`, but for the split.

This is the set-up of those tutorials, not a test of few-shot learning: the test asks for the same intents as the
training, with other sentences. `configs/text.py` holds whole domains out. Those tutorials give no data and no figures.
"""

from ml_collections import ConfigDict

from metaicl.configuration import ConfigError, load_config_file, parse_argument

text = load_config_file("text", beside=__file__)

TRAINING, TEST, ALL = 1000, 200, 2250  # sentences of a domain
ONE_STEP = ("maml", "fomaml", "protomaml", "anil")


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, text.DEFAULTS)
    for key in ("split", "held_out"):
        if arg[key]:
            raise ConfigError(
                f"{key}={arg[key]}: here every domain is in training and test. Use configs/text.py."
            )
    config = text.get_config(",".join(filter(None, [argument, "split=class"])))
    config.data.update(
        by="domain", split="images", fractions=(TRAINING / ALL, 1 - (TRAINING + TEST) / ALL, TEST / ALL)
    )
    config.task.update(test_queries=5)
    for name in ONE_STEP:
        entry = config.learners[name]
        # One step has to go far.
        entry.update(
            inner_steps=1, inner_lr=0.4, test=dict(inner_steps=1), variants={"10 steps": dict(inner_steps=10)}
        )
    config.evaluate.episodes = 30 if arg.quick else 200  # of each of ten domains
    return config
