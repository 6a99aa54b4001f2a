# SPDX-License-Identifier: Apache-2.0
"""A data set that no camera took: classes are formulas, images of a class are drawn from one formula.

Half of the classes are iterated function systems (Kataoka et al., Pre-training without Natural Images, ACCV 2020;
sampled as in Anderson and Farrell, Improving Fractal Pre-training, WACV 2022). The others are closed curves, sums of
waves and scattered shapes, since pictures also have outlines and textures. What a formula gives is drawn once, without
colours; every training step colours, turns and blurs the drawings anew.
"""

from metaicl.data.formulas.drawings import Drawings, draw_formulas
from metaicl.data.formulas.source import painted

__all__ = ["Drawings", "draw_formulas", "painted"]
