# SPDX-License-Identifier: Apache-2.0
"""Sentences to token ids: the WordPiece of a pretrained model, or hashed words where there is none."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_SPECIAL = ("padding", "start", "end")  # ids 0, 1, 2 of hashed words
_WORDS = re.compile(r"\w+|[^\w\s]")


class Tokenizer(NamedTuple):
    """A way from sentences to token ids.

    Attributes:
      encode: `(sentences) -> list of lists of ids`, whole, each with its first and last token of its own.
      vocabulary: number of ids.
      padding: the id that is no token.
      digest: names it, for caches.
    """

    encode: Callable[[Sequence[str]], list[list[int]]]
    vocabulary: int
    padding: int
    digest: str


def hashed_words(vocabulary: int = 16384) -> Tokenizer:
    """Lower-case words and marks by a hash of their spelling (Weinberger et al. 2009): nothing to fit or load.

    Two words may share an id; the same sentence has the same ids everywhere, whatever the other sentences.
    """
    if vocabulary <= len(_SPECIAL):
        raise ValueError(f"A vocabulary of {vocabulary} ids has no room for words.")
    places = vocabulary - len(_SPECIAL)

    def encode(sentences):
        words = lambda text: (len(_SPECIAL) + zlib.crc32(w.encode()) % places for w in _WORDS.findall(text))
        return [[1, *words(text.lower()), 2] for text in sentences]

    return Tokenizer(encode, vocabulary, 0, f"hashed-words-v1-{vocabulary}")


def load_tokenizer(folder: str | Path, *, vocabulary: int, padding: int) -> Tokenizer:
    """The WordPiece of a Hugging Face folder, from its tokenizer.json or else its vocab.txt.

    Args:
      folder: of the model.
      vocabulary, padding: number of ids, and the padding id, of the weights that it has to belong to.

    Raises:
      ImportError: without the library `tokenizers`, saying what to install.
      FileNotFoundError: if the folder has no tokenizer.
      ValueError: for a damaged one, or one that does not belong to the weights.
    """
    path, tokenizer = _read(Path(folder))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size, pad = tokenizer.get_vocab_size(), tokenizer.token_to_id("[PAD]")
    if size != vocabulary:
        raise ValueError(
            f"{path} has {size} tokens, and the weights are of {vocabulary}: it does not belong to them. Give the "
            "tokenizer that came with the weights."
        )
    if pad != padding:
        raise ValueError(
            f"{path} pads with the id {pad}, and the weights' config.json says {padding}: they do not belong "
            "together. Give the tokenizer that came with the weights."
        )

    def encode(sentences):
        return [found.ids for found in tokenizer.encode_batch(list(sentences))]

    digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    return Tokenizer(encode, size, padding, f"wordpiece-{digest}")


def _read(folder: Path) -> tuple[Path, Any]:
    whole, words = folder / "tokenizer.json", folder / "vocab.txt"
    path = whole if whole.is_file() else words
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json or vocab.txt. Give the folder of a whole model."
        )
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            f'Reading {path} takes the library `tokenizers`: pip install "metaicl[text]".'
        ) from error
    try:
        if path == whole:
            return path, tokenizers.Tokenizer.from_file(str(path))
        return path, tokenizers.BertWordPieceTokenizer(str(words), lowercase=_lower_case(folder))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{path} is not a tokenizer ({error}). Download it again.") from error


def _lower_case(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    return bool(json.loads(path.read_text()).get("do_lower_case", True)) if path.is_file() else True


def padded(ids: Sequence[Sequence[int]], padding: int, longest: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows of equal length: the longest sentence's, but at most `longest` tokens.

    Args:
      ids: of every sentence, the last of each closing it.
      padding: the id to fill up with.
      longest: tokens of a row at most; longer sentences lose what is before their last token.

    Returns:
      `int32 [n, T]` ids, `int32 [n]` tokens of each sentence, and how many sentences were cut.
    """
    cut = [row if len(row) <= longest else [*row[: longest - 1], row[-1]] for row in ids]
    lengths = np.array([len(row) for row in cut], np.int32)
    rows = np.full((len(cut), lengths.max(initial=1)), padding, np.int32)
    for row, kept in zip(rows, cut, strict=True):
        row[: len(kept)] = kept
    return rows, lengths, sum(len(row) > longest for row in ids)
