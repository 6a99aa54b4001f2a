# SPDX-License-Identifier: Apache-2.0
"""Function classes, sampled on the device inside the jitted step.

sines.py       the sine curves of MAML and Reptile
classes.py     the classes: how a function is drawn and what its variance is
inputs.py      where the points lie, and the published shifts of the query against its context
mixtures.py    a class drawn for every prompt; convex combinations of two
curriculum.py  how many dimensions and points take part at which step
prompts.py     all of that as a Source
"""

from metaicl.data.functions.classes import CLASSES, weight_pool
from metaicl.data.functions.curriculum import Curriculum
from metaicl.data.functions.inputs import SHIFTS, Inputs
from metaicl.data.functions.mixtures import mixture, mixture_variance
from metaicl.data.functions.prompts import prompts
from metaicl.data.functions.sines import sinusoids

__all__ = [
    "CLASSES",
    "SHIFTS",
    "Curriculum",
    "Inputs",
    "mixture",
    "mixture_variance",
    "prompts",
    "sinusoids",
    "weight_pool",
]
