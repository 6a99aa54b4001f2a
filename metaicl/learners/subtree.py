# SPDX-License-Identifier: Apache-2.0
"""Which part of a tree of weights adapts: a selection by name or path, and the two halves that it parts."""

from __future__ import annotations

from fnmatch import fnmatchcase

from flax.traverse_util import empty_node, flatten_dict, unflatten_dict

from metaicl.episode import PyTree

ALIASES = {"all": "*", "adapters": "*adapter*"}


def split(params: dict[str, PyTree], adapted: str) -> tuple[dict, dict]:
    """Parts nested dicts of weights into (adapted, frozen), each with its own part of the nesting.

    Args:
      params: nested dicts.
      adapted: `all`; `head`; `body`, all but the head; `adapters`; or paths like `encoder/layer_1`, which mean
        all below them and may hold the wildcards of the shell (`encoder/*/bias`), several joined with `+`. A
        leading `-` takes everything else.

    Raises:
      ValueError: if nothing is adapted, listing the paths there are.
    """
    flat = flatten_dict(params, keep_empty_nodes=True)
    wanted = "-head" if adapted == "body" else adapted
    patterns = [ALIASES.get(name, name) for name in wanted.removeprefix("-").split("+")]
    unused = [p for p in patterns if not any(_matches(path, p) for path in flat)]
    leaves = {path for path, leaf in flat.items() if leaf is not empty_node}
    chosen = {path for path in leaves if any(_matches(path, p) for p in patterns) != wanted.startswith("-")}
    if unused or not chosen:
        paths = ", ".join(sorted("/".join(path) for path in leaves))
        what = f"{unused[0]!r} of adapted={adapted!r}" if unused else f"adapted={adapted!r}"
        raise ValueError(
            f"{what} matches nothing; use 'all', 'head', 'body', 'adapters', or a path of: {paths}."
        )
    part = lambda keep: unflatten_dict(
        {path: leaf for path, leaf in flat.items() if (path in chosen) == keep}
    )
    return part(True), part(False)


def joined(fast: dict, frozen: dict) -> dict:
    """The whole tree again."""
    flat = [flatten_dict(part, keep_empty_nodes=True) for part in (fast, frozen)]
    return unflatten_dict(flat[0] | flat[1])


def _matches(path: tuple[str, ...], pattern: str) -> bool:
    """Whether the pattern names the path or something above it."""
    return any(fnmatchcase("/".join(path[: n + 1]), pattern) for n in range(len(path)))
