# SPDX-License-Identifier: Apache-2.0
"""Models by their names on the Hugging Face hub, fetched by its own client into its own cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def fetched(name: str, files: Sequence[str], instead: str) -> Path:
    """The folder of a model of the hub, with those of its files that match the patterns `files`.

    `instead` says in errors what a user may give in place of a name.

    Raises:
      FileNotFoundError: without the client, or if it cannot get the model.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"There is no folder {name}. If it is a name of the Hugging Face hub, install its client "
            f'(pip install "metaicl[text]"); else give a {instead}.'
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # of several libraries below the client
        raise FileNotFoundError(
            f"{name!r} is no folder, and the Hugging Face hub did not give it ({error}). Give the path of a "
            f"downloaded {instead}."
        ) from error
