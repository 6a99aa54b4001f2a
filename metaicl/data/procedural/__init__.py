# SPDX-License-Identifier: Apache-2.0
"""The embedded album: thirty drawn data sets of ten domains, for machines that hold no data.

`EMBEDDED_DOMAINS` costs nothing to look at; `embedded_album` draws the images once (about half a minute on
two cores for all 24,000) and afterwards reads them from a cache. Image j of class c of a set depends only
on (seed, name of the set, c, j).
"""

from __future__ import annotations

from metaicl.data.procedural.album import EMBEDDED_DOMAINS, embedded_album
from metaicl.data.procedural.contact_sheet import contact_sheet

__all__ = ["EMBEDDED_DOMAINS", "contact_sheet", "embedded_album"]
