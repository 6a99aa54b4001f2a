# SPDX-License-Identifier: Apache-2.0
"""The table of Meta-Album's 30 official data sets: domains, sizes and OpenML numbers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

DOMAINS = {  # domain id -> readable name, in the order of Meta-Album's own domain index
    "LR_AM": "large animals",
    "SM_AM": "small animals",
    "PLT": "plants",
    "PLT_DIS": "plant diseases",
    "MCR": "microscopy",
    "REM_SEN": "remote sensing",
    "VCL": "vehicles",
    "MNF": "manufacturing",
    "HUM_ACT": "human actions",
    "OCR": "OCR",
}


class Release(NamedTuple):
    """One size of a data set: its class and image counts and its number at OpenML."""

    classes: int
    images: int
    openml: int


class OfficialSet(NamedTuple):
    """One of Meta-Album's 30 data sets; its counts are what the info files claim, not always the truth."""

    id: str
    name: str
    domain_id: str
    set: int
    micro: Release
    mini: Release
    extended: Release | None

    @property
    def domain(self) -> str:
        """Readable name of the domain."""
        return DOMAINS[self.domain_id]


def _official(table: str) -> dict[str, OfficialSet]:
    """Parses rows `domain set id name... | openml micro mini extended | mini cls img | extended cls img`."""
    sets = {}
    for line in table.strip().splitlines():
        head, openml, mini, extended = (part.split() for part in line.split("|"))
        micro_id, mini_id, *extended_id = map(int, openml)
        sets[head[2]] = OfficialSet(
            id=head[2],
            name=" ".join(head[3:]),
            domain_id=head[0],
            set=int(head[1]),
            micro=Release(20, 800, micro_id),
            mini=Release(int(mini[0]), int(mini[1]), mini_id),
            extended=Release(int(extended[0]), int(extended[1]), extended_id[0]) if extended_id else None,
        )
    return sets


# All Micro releases claim 20 classes of 40 images. OCR has no Extended release.
OFFICIAL = _official("""
LR_AM   0 BRD      Birds                          | 44241 44285 44320 | 315 12600 | 315 49054
LR_AM   1 DOG      Dogs                           | 44313 44298 44331 | 120  4800 | 120 20480
LR_AM   2 AWA      Animals with Attributes        | 44275 44305 44338 |  50  2000 |  50 37318
SM_AM   0 PLK      Plankton                       | 44238 44282 44317 |  86  3440 | 102 473273
SM_AM   1 INS_2    Insects2                       | 44248 44292 44326 | 102  4080 | 102 75222
SM_AM   2 INS      Insects                        | 44276 44306 44340 | 104  4110 | 117 170506
PLT     0 FLW      Flowers                        | 44239 44283 44318 | 102  4080 | 102 8189
PLT     1 PLT_NET  PlantNet                       | 44249 44293 44327 |  25  1000 |  25 120688
PLT     2 FNG      Fungi                          | 44272 44302 44335 |  25  1000 |  25 15122
PLT_DIS 0 PLT_VIL  Plant Village                  | 44242 44286 44321 |  38  1520 |  38 54305
PLT_DIS 1 MED_LF   Medicinal Leaf                 | 44314 44299 44332 |  25  1000 |  26 1596
PLT_DIS 2 PLT_DOC  Plant Doc                      | 44273 44303 44336 |  27  1080 |  27 2549
MCR     0 BCT      DIBaS                          | 44237 44281 44316 |  33  1320 |  33 4060
MCR     1 PNU      PanNuke                        | 44312 44297 44330 |  19   760 |  19 5530
MCR     2 PRT      Subcellular Human Protein      | 44278 44308 44342 |  21   840 |  21 15050
REM_SEN 0 RESISC   RESISC                         | 44246 44290 44324 |  45  1800 |  45 31500
REM_SEN 1 RSICB    RSICB                          | 44315 44300 44333 |  45  1800 |  45 36707
REM_SEN 2 RSD      RSD                            | 44277 44307 44341 |  38  1520 |  43 43825
VCL     0 CRS      Cars                           | 44245 44289 44323 | 196  7840 | 196 16185
VCL     1 APL      Airplanes                      | 44251 44295 44329 |  21   840 |  21 9625
VCL     2 BTS      Boats                          | 44279 44309 44343 |  26  1040 |  26 138367
MNF     0 TEX      Textures                       | 44244 44288 44322 |  64  2560 |  64 8675
MNF     1 TEX_DTD  Textures-DTD                   | 44250 44294 44328 |  47  1880 |  47 5640
MNF     2 TEX_ALOT Textures-ALOT                  | 44274 44304 44337 | 250 10000 | 250 25000
HUM_ACT 0 SPT      Sports Actions                 | 44240 44284 44319 |  73  2920 |  73 10416
HUM_ACT 1 ACT_40   Stanford 40 Actions            | 44247 44291 44325 |  39  1560 |  40 3389
HUM_ACT 2 ACT_410  MPII Human Pose Dataset        | 44271 44301 44334 |  29  1160 |  29 2402
OCR     0 MD_MIX   OmniPrint-MD-mix               | 44243 44287       | 706 28240 |
OCR     1 MD_5_BIS OmniPrint-MD-5-bis             | 44252 44296       | 706 28240 |
OCR     2 MD_6     OmniPrint-MD-6                 | 44280 44310       | 703 28120 |
""")


SIZES = ("micro", "mini", "extended")
# (id, size) -> counts that are as good as those of the info files, which are wrong about these.
_ALSO_RIGHT = {
    ("PNU", "micro"): ((19, 760),),
    ("DOG", "micro"): ((19, 760),),
    ("INS", "mini"): ((104, 4160),),  # 104 x 40, where 4,110 images are told
}
_FAR = 2  # a release with less than half or more than twice what it should have is another one


def require_size(size: str) -> None:
    """Raises a ValueError for an unknown size, telling the nearest."""
    if size not in SIZES:
        near = difflib.get_close_matches(size.lower(), SIZES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Meta-Album has no size {size!r}.{hint} There are: {', '.join(SIZES)}.")


def release_of(official: OfficialSet, size: str) -> tuple[str, Release]:
    """The size of a data set and its release; of what has no extended release, the mini one.

    Raises:
      ValueError: for an unknown size.
    """
    require_size(size)
    if size == "extended" and official.extended is None:
        size = "mini"
    return size, getattr(official, size)


def choose_official(names: Sequence[str]) -> list[OfficialSet]:
    """The official data sets of these ids (see `official_set`) or names, each once; all of them where none is named.

    Raises:
      ValueError: for an unknown name, telling the nearest.
    """
    chosen = {}
    by_name = {official.name.upper(): official for official in OFFICIAL.values()}
    for name in names or OFFICIAL:
        found = official_set(name) or by_name.get(name.upper())
        if found is None:
            known = {key.upper(): o.id for o in OFFICIAL.values() for key in (o.id, o.name)}
            nearest = known[difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]]
            raise ValueError(
                f"Meta-Album has no data set {name!r}. Did you mean {nearest!r}? There are: {', '.join(OFFICIAL)}."
            )
        chosen[found.id] = found
    return list(chosen.values())


def count_remark(official: OfficialSet, size: str, classes: int, images: int) -> str:
    """What is to be said about the counts of a release: nothing where they are those of the table.

    Raises:
      ValueError: if they are so far off that this is another data set, or a part of it.
    """
    wanted = getattr(official, size)
    if (classes, images) == (wanted.classes, wanted.images):
        return ""
    told = (
        f"{classes:,} classes of {images:,} images in all, where Meta-Album tells of {wanted.classes:,} and "
        f"{wanted.images:,}"
    )
    if (classes, images) in _ALSO_RIGHT.get((official.id, size), ()):
        return f"{told}: a known slip of its info file"
    for there, right in ((classes, wanted.classes), (images, wanted.images)):
        if there * _FAR < right or there > right * _FAR:
            raise ValueError(
                f"{official.id} ({size}) holds {told}: that is another data set, or a part of it. Try again later, "
                "or read what is there with `folder PATH`."
            )
    return told


def official_set(name: str) -> OfficialSet | None:
    """The official data set that a folder, an OpenML or an info name means, or None.

    `BRD_Mini`, `Meta_Album_BRD_Mini`, `INS_2_Micro` and the info files' `INS2` are all understood.
    """
    plain = re.sub(r"^META_?ALBUM_|_(MICRO|MINI|EXTENDED)$", "", name.upper())
    return {key.replace("_", ""): value for key, value in OFFICIAL.items()}.get(plain.replace("_", ""))
