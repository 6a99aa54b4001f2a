# SPDX-License-Identifier: Apache-2.0
"""Does plain SGD make the minibatches of a task agree, and does a network so trained adapt faster? On Omniglot.

The Taylor expansion of Reptile (Nichol et al. 2018, section 5.1) says that consecutive steps of SGD on minibatches of
one task raise the inner product of these minibatches' gradients, which would make fine-tuning of networks trained by
plain SGD work. It is put to a test that can fail: a stream of tasks, each visited for

    four steps     SGD on four disjoint minibatches of 25 images, then the next task (Reptile with an outer step of 1)
    one large step the same 100 images in one step of four times the rate: the same first-order term, no second one
    one step       one minibatch of 25, then the next task, four times as many tasks
    last of four   along the last of four gradients only: first-order MAML

for the same number of gradients. Measured on tasks of characters that were not trained on, before adaptation: the
cosine of the gradients of two disjoint minibatches of 25; then the accuracy after 0 to 5 steps on the first of them.

    python -m metaicl.main --config=configs/gradient_agreement.py          4,000 gradients, three seeds
    python -m metaicl.main --config=configs/gradient_agreement.py:quick    800 gradients, one seed
    python -m metaicl.main --config=configs/gradient_agreement.py:full     160,000 gradients, three seeds

Expected: all raise the cosine, from 0.2 to 0.4 (one large step), 0.6 (one and four steps) and 0.8 (last of four); only
the last of four adapts faster than an untrained network, because the others' gradients become short.

Network, minibatches and inner rate are those of `gradient_combinations.py`; the design of the test is ours.
"""

from ml_collections import ConfigDict

from metaicl import defaults
from metaicl.configuration import named, parse_argument

RATE = 0.003 * 25  # of the released code, which sums over the 25
# name: settings, shots of a training task, tasks per gradient
STREAMS = {
    "four steps": (dict(inner_steps=4, inner_batch=25, inner_lr=RATE), 20, 1 / 4),
    "one large step": (dict(inner_steps=1, inner_batch=100, inner_lr=4 * RATE), 20, 1 / 4),
    "one step": (dict(inner_steps=1, inner_batch=25, inner_lr=RATE), 5, 1),
    "last of four": (dict(inner_steps=4, inner_batch=25, inner_lr=RATE, direction="last"), 20, 1 / 4),
}
ADAPTATION = (0, 1, 2, 5)


def get_config(argument: str | None = None) -> ConfigDict:
    """The config; see the module docstring for the argument."""
    arg = parse_argument(argument, dict(folder="$METAICL_DATA/omniglot", download=False))
    gradients = 160_000 if arg.full else 800 if arg.quick else 4000
    config = ConfigDict()
    config.seed = 0
    config.data = defaults.omniglot(arg.folder, arg.download, "maml")
    # No queries in training: four minibatches take all 20 images of a character.
    config.task = defaults.classification(ways=5, shots=5, queries=0, test_shots=5, test_queries=5)
    config.learners = {
        name: learner(settings, int(gradients * tasks)) for name, (settings, _, tasks) in STREAMS.items()
    }
    config.learners["untrained"] = learner(STREAMS["one step"][0], 0)
    config.learner = "four steps"
    config.baselines = ("untrained",)
    config.train = defaults.training(
        steps=0, optimizer="sgd", learning_rate=1.0, log_every=50, checkpoint_every=2000
    )
    config.evaluate = defaults.evaluation(
        episodes=200, batch=50, select="last", validation_episodes=50, probes=dict(gradient_agreement={})
    )
    config.replicas = defaults.seeds(1 if arg.quick else 3)
    config.runs = named(
        {name: {"learner": name, "task.shots": shots} for name, (_, shots, _) in STREAMS.items()}
    )
    return config


def learner(settings: dict, steps: int) -> dict:
    """One way through the stream, of so many tasks."""
    return dict(
        kind="reptile",
        moments="fresh",
        inner_optimizer="sgd",
        encoder="conv",
        encoder_settings=dict(defaults.STRIDED, pool="flatten"),
        test=dict(inner_steps=5, inner_batch=None, inner_lr=RATE, direction="all"),
        sweep=dict(setting="inner_steps", values=ADAPTATION),
        train=dict(steps=steps, validate_every=steps // 10),
        **settings,
    )
