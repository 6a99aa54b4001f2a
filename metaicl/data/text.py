# SPDX-License-Identifier: Apache-2.0
"""Data sets of labelled sentences: CLINC150, BANKING77, and any csv or jsonl of text and label.

A sentence becomes a row of token ids, a data set one Pool for each of its domains, or one for all.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from metaicl.data.images import DataWarning
from metaicl.data.pool import Pool
from metaicl.data.tokens import Tokenizer, padded
from metaicl.files import given_path

Grouping = Literal["domain", "all"]

# What a column or field may be called, the first that is there.
_TEXT = ("text", "sentence", "utterance", "query")
_LABEL = ("label", "category", "intent", "class")
_DOMAIN = ("domain",)
_CLINC150 = ("clinc150_data_full.json", "data_full.json")


@dataclasses.dataclass(frozen=True)
class Sentences:
    """The labelled sentences of one data set, in the order of its files.

    Attributes:
      name: of the data set.
      texts, labels, domains: of each sentence.
    """

    name: str
    texts: list[str]
    labels: list[str]
    domains: list[str]


def read_sentences(dataset: str, path: str | os.PathLike) -> Sentences:
    """Reads a data set of sentences; out-of-scope sentences, which have no class, are left out.

    Args:
      dataset: `clinc150` or `banking77`; or the path of a .csv, .tsv or .jsonl file with a text and a label (columns
        or fields `text` and `label` or `category`, and a `domain` if there are several).
      path: the folder of the two named ones; not used for a file.

    Raises:
      FileNotFoundError: if a file is not there.
      ValueError: for a file without the columns, an empty sentence or label, or no sentence at all.
    """
    named = dataset in _READERS
    found = _READERS[dataset](given_path(path)) if named else _read_file(given_path(dataset))
    if not found.texts:
        raise ValueError(f"The data set {found.name!r} holds no sentence. Give another file.")
    return _without_repetitions(found)


def read_labelled(path: str | os.PathLike) -> Sentences:
    """The labelled sentences of a .csv, .tsv or .jsonl file; errors as `read_sentences`."""
    return read_sentences(str(given_path(path).absolute()), "")


def read_queries(path: str | os.PathLike) -> tuple[list[str], list[str] | None]:
    """The sentences of a .csv, .tsv or .jsonl file in its order, and their labels if its first row has one.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for a file without sentences or their column, or with an empty sentence or label.
    """
    path, found = given_path(path), Sentences("", [], [], [])
    labelled = True
    for number, (place, row) in enumerate(_rows_of(path)):
        plain = _plain(row)
        labelled = labelled and (number > 0 or any(name in plain for name in _LABEL))
        text = _field(path, place, plain, _TEXT)
        label = _field(path, place, plain, _LABEL) if labelled else "-"
        _add(found, path, place, text, label, "-")
    if not found.texts:
        raise ValueError(f"{path} holds no sentence. Give another file.")
    return found.texts, found.labels if labelled else None


def read_out_of_scope(dataset: str, path: str | os.PathLike) -> Sentences:
    """The sentences of a data set that belong to none of its classes, under one label.

    Raises:
      ValueError: for a data set that has none. FileNotFoundError: if a file is not there.
    """
    if dataset != "clinc150":
        raise ValueError(f"{dataset!r} has no out-of-scope sentences, only clinc150 has: leave them out.")
    file = _existing(given_path(path), *_CLINC150)
    told, found = _json(file), Sentences("clinc150_out_of_scope", [], [], [])
    for part in ("oos_train", "oos_val", "oos_test"):
        for text, label in told.get(part, ()):
            _add(found, file, f"part {part!r}", text, label, "out of scope")
    if not found.texts:
        raise ValueError(f"{file} has no part 'oos_test'. Download it again.")
    return _without_repetitions(found)


def list_domains(dataset: str, path: str | os.PathLike) -> list[str]:
    """The domains of a data set of sentences, sorted; arguments and errors as `read_sentences`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # told when the sentences are read to be used
        return sorted(set(read_sentences(dataset, path).domains))


def make_pools(
    sentences: Sentences,
    tokenizer: Tokenizer,
    *,
    longest: int,
    buckets: Sequence[int] = (),
    by: Grouping = "domain",
) -> list[Pool]:
    """Pools of token ids `int32 [n, T]`; T is the same for all: the smallest bucket that holds every sentence,
    or, if none up to `longest` does, the length of the longest one.

    Args:
      sentences: of one data set.
      tokenizer: `data.tokens.hashed_words` or `load_tokenizer`.
      longest: tokens of a sentence at most; longer ones are cut, and a `DataWarning` counts them.
      buckets: see `sampler.Buckets`; none: T is the length of the longest sentence.
      by: a pool for each `domain`, or one for `all`.

    Raises:
      ValueError: if a label is of two domains.
    """
    ids = token_rows(sentences.texts, tokenizer, name=sentences.name, longest=longest, buckets=buckets)
    digests = np.array([_digest(text) for text in sentences.texts], "S64")
    domains = sorted(set(sentences.domains))
    several = by == "domain" and len(domains) > 1
    pools = []
    for domain in domains if several else [None]:
        rows = np.array([i for i, d in enumerate(sentences.domains) if domain in (None, d)])
        labels = np.array([sentences.labels[i] for i in rows])
        classes, numbers = np.unique(labels, return_inverse=True)
        order = np.argsort(numbers, kind="stable")
        pools.append(
            Pool(
                name=f"{sentences.name}_{domain}" if several else sentences.name,
                domain=domain or (domains[0] if len(domains) == 1 else "all"),
                classes=tuple(map(str, classes)),
                labels=numbers[order].astype(np.int32),
                x=ids[rows[order]],
                digests=digests[rows[order]],
            )
        )
    return pools


def token_rows(
    texts: Sequence[str], tokenizer: Tokenizer, *, name: str, longest: int, buckets: Sequence[int] = ()
) -> np.ndarray:
    """Sentences as rows of token ids `int32 [n, T]`, padded; arguments and T as in `make_pools`."""
    ids, lengths, cut = padded(tokenizer.encode(texts), tokenizer.padding, longest)
    if cut:
        warnings.warn(
            f"{name}: {cut} of {len(ids)} sentences are longer than {longest} tokens and were cut.",
            DataWarning,
            stacklevel=3,
        )
    width = next((b for b in sorted(buckets) if lengths.max() <= b <= longest), ids.shape[1])
    return np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=tokenizer.padding)


def _digest(text: str) -> str:
    """Two spellings that differ in capitals and spaces only are the same sentence."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


def _without_repetitions(found: Sentences) -> Sentences:
    """Without sentences that were there before: one in the support and again in the queries is no question."""
    first: dict[str, int] = {}
    for i, text in enumerate(found.texts):
        first.setdefault(_digest(text), i)
    rows = list(first.values())
    if len(rows) == len(found.texts):
        return found
    contradicting = sum(
        found.labels[i] != found.labels[first[_digest(text)]] for i, text in enumerate(found.texts)
    )
    warnings.warn(
        f"{found.name}: left out {len(found.texts) - len(rows)} sentences that repeat an earlier one, {contradicting} "
        "of them with another label.",
        DataWarning,
        stacklevel=3,
    )
    pick = lambda column: [column[i] for i in rows]
    return Sentences(found.name, pick(found.texts), pick(found.labels), pick(found.domains))


def _existing(folder: Path, *names: str) -> Path:
    """The first of the names that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has no {' or '.join(names)}. Give the folder that holds it.")


def _clinc150(folder: Path) -> Sentences:
    """CLINC150 (Larson et al. 2019): 10 domains of 15 intents, all three published parts together."""
    path = _existing(folder, *_CLINC150)
    domains_path = _existing(folder, "clinc150_domains.json", "domains.json")
    told, by_domain = (_json(p) for p in (path, domains_path))
    domain_of = {label: domain for domain, labels in by_domain.items() for label in labels}
    result = Sentences("clinc150", [], [], [])
    for part in ("train", "val", "test"):
        if part not in told:
            raise ValueError(f"{path} has no part {part!r}. Download it again.")
        for text, label in told[part]:
            if label not in domain_of:
                raise ValueError(f"{domains_path} has no domain of the intent {label!r} of {path.name}.")
            _add(result, path, f"part {part!r}", text, label, domain_of[label])
    return result


def _banking77(folder: Path) -> Sentences:
    """BANKING77 (Casanueva et al. 2020): 77 intents of one domain, both published parts together."""
    result = Sentences("banking77", [], [], [])
    for names in (("banking77_train.csv", "train.csv"), ("banking77_test.csv", "test.csv")):
        _add_rows(result, _existing(folder, *names), "banking")
    return result


def _read_file(path: Path) -> Sentences:
    result = Sentences(path.stem, [], [], [])
    _add_rows(result, path, path.stem)
    return result


def _rows_of(path: Path) -> Iterator[tuple[str, dict]]:
    """The place of every row of a file, and its fields."""
    if path.suffix.lower() not in _ROWS:
        known = ", ".join([*_READERS, *(f"a path of a {ending} file" for ending in _ROWS)])
        raise ValueError(f"There is no data set of sentences {str(path)!r}; give {known}.")
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}. Give the path of a csv or jsonl of text and label."
        )
    try:
        yield from _ROWS[path.suffix.lower()](path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error}). Save it as UTF-8 text.") from error


def _plain(row: dict) -> dict:
    return {str(key).strip().lower(): value for key, value in row.items() if key is not None}


def _add_rows(result: Sentences, path: Path, domain: str) -> None:
    """Adds the rows of a file; those without a domain of their own are of `domain`."""
    for place, row in _rows_of(path):
        plain = _plain(row)
        text, label = (_field(path, place, plain, names) for names in (_TEXT, _LABEL))
        own = next((plain[name] for name in _DOMAIN if plain.get(name)), domain)
        _add(result, path, place, text, label, str(own))


def _field(path: Path, place: str, row: dict, names: Sequence[str]) -> str:
    for name in names:
        if name in row:
            return "" if row[name] is None else str(row[name])
    raise ValueError(
        f"{path}, {place}: there is no column {names[0]!r} (or {', '.join(names[1:])}); there are "
        f"{', '.join(map(repr, row)) or 'none'}. Rename one."
    )


def _add(result: Sentences, path: Path, place: str, text: str, label: str, domain: str) -> None:
    for what, value in (("sentence", text), ("label", label), ("domain", domain)):
        if not value.strip():
            raise ValueError(f"{path}, {place}: an empty {what}. Complete or remove it.")
    result.texts.append(text)
    result.labels.append(label.strip())
    result.domains.append(domain.strip())


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Download it again.") from error


def _csv_rows(path: Path, delimiter: str = ",") -> Iterator[tuple[str, dict]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.DictReader(file, delimiter=delimiter)
        for row in lines:
            yield f"line {lines.line_num}", row


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not valid JSON ({error}). Mend it.") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is no JSON object with a text and a label.")
            yield f"line {number}", row


_READERS: dict[str, Callable[[Path], Sentences]] = {"clinc150": _clinc150, "banking77": _banking77}
_ROWS: dict[str, Callable[[Path], Iterator[tuple[str, dict]]]] = {
    ".csv": _csv_rows,
    ".tsv": lambda path: _csv_rows(path, "\t"),
    ".jsonl": _jsonl_rows,
}
