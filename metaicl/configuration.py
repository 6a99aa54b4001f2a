# SPDX-License-Identifier: Apache-2.0
"""Configs: their argument string, their overrides, and errors that name the nearest known key.

Argument grammar, after `--config=file.py:`: comma-separated `key=value` pairs and bare words. A bare word is a
flag, or the value of the config's positional key. Numbers and booleans are parsed, all else is a string.
"""

from __future__ import annotations

import ast
import copy
import difflib
import importlib.util
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

SHOWN = 40  # names that an error lists


class ConfigError(ValueError):
    """A config, or what was asked of it, cannot be used."""


def parse_argument(
    text: str | None,
    defaults: Mapping[str, Any],
    *,
    flags: Sequence[str] = ("quick", "full"),
    positional: str = "",
) -> ConfigDict:
    """Parses a config's argument string.

    Args:
      text: what follows `file.py:`; None or empty for nothing.
      defaults: the keys there are, and their defaults, which also give their types.
      flags: bare words that switch something on; each becomes a boolean of the result.
      positional: the key that any other bare word sets, if the config has one.

    Raises:
      ConfigError: for an unknown key or word (naming the nearest), or a value of another type.
    """
    values = dict(defaults) | dict.fromkeys(flags, False)
    for part in filter(None, (text or "").split(",")):
        key, equals, raw = part.partition("=")
        if not equals and key in flags:
            values[key] = True
        elif not equals and positional and key not in values:
            values[positional] = key
        elif not equals:
            raise ConfigError(_unknown("word", key, [*flags, *(f"{k}=..." for k in defaults)]))
        elif key not in values:
            raise ConfigError(_unknown("key", key, values))
        else:
            values[key] = _typed(key, raw, values[key])
    return ConfigDict(values)


def load_config_file(name: str, *, beside: str) -> ModuleType:
    """The config file `name` in the folder of another one: how one config builds on another, wherever it is run from.

    Args:
      name: without its `.py`.
      beside: `__file__` of the config that asks.
    """
    path = pathlib.Path(beside).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"configs_{name}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise ConfigError(f"There is no config file {path}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _typed(key: str, raw: str, default: Any) -> Any:
    if isinstance(default, str):
        return raw
    value = {"true": True, "false": False, "none": None}.get(raw.lower(), raw)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = raw
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if default is not None and type(value) is not type(default):
        raise ConfigError(f"{key}={raw!r} is not of the type {type(default).__name__} that {key!r} has.")
    return value


def overridden(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy with some values replaced: `{"data.held_out": "plants"}` or `{"data": {"held_out": "plants"}}`.

    A part of the config that is empty, such as `replicas`, may be filled with anything.

    Raises:
      ConfigError: for a key that the config does not have, naming the nearest, or a value of another type.
    """
    result = copy.deepcopy(config)
    known = dict(leaves(config))
    empty = [name for name, value in known.items() if isinstance(value, ConfigDict)]
    for key, value in leaves(overrides):
        *parents, last = key.split(".")
        open_ended = any(key.startswith(f"{name}.") for name in empty)
        node: Any = result
        for parent in parents:
            if open_ended and isinstance(node, ConfigDict) and parent not in node:
                with node.unlocked():
                    node[parent] = ConfigDict()
            node = node.get(parent) if isinstance(node, ConfigDict) else None
        if not isinstance(node, ConfigDict) or (last not in node and not open_ended):
            raise ConfigError(_unknown("config key", key, known))
        try:
            with node.unlocked():
                node[last] = value
        except TypeError as error:
            kind = type(node[last]).__name__
            raise ConfigError(f"{key}={value!r} is not of the type {kind} that {key!r} has.") from error
    return result


def refuse_vain(config: ConfigDict, given: Mapping[str, Any]) -> None:
    """Refuses values of the command line that the config's runs replace by their own.

    Args:
      config: with `runs`, whose overrides are applied last.
      given: what the command line set, by dotted key.

    Raises:
      ConfigError: for a value that no run would use.
    """
    replaced = [dict(leaves(overrides)) for overrides in config.runs.values()]
    for key, value in given.items():
        if replaced and all(any(_within(other, key) for other in run) for run in replaced):
            raise ConfigError(
                f"--config.{key}={value!r} would have no effect: every run of this config sets {key} itself. Give it "
                "in the argument behind the config's name (--config=FILE.py:key=value), or choose among --list."
            )


def _within(key: str, above: str) -> bool:
    return key == above or key.startswith(f"{above}.") or above.startswith(f"{key}.")


def separate(entries: Mapping[str, Mapping[str, Any]]) -> ConfigDict:
    """A part of the config such as `learners`, whose entries share nothing.

    A ConfigDict keeps two references to one dict as one object, so an override of what two entries were built with
    would reach both.
    """
    return ConfigDict({name: copy.deepcopy(entry) for name, entry in entries.items()})


def named(overrides: Mapping[str, Mapping[str, Any]]) -> ConfigDict:
    """Runs or replicas by name, each with dotted overrides, in the nested form that a `ConfigDict` can hold."""
    result = ConfigDict()
    for name, values in overrides.items():
        result[name] = ConfigDict()
        for key, value in values.items():
            *parents, last = key.split(".")
            node = result[name]
            for parent in parents:
                if parent not in node:
                    node[parent] = ConfigDict()
                node = node[parent]
            node[last] = value
    return result


def leaves(config: Mapping, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """All `(dotted key, value)` pairs of a nested config."""
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping | ConfigDict) and len(value):
            yield from leaves(value, name)
        else:
            yield name, value


def as_json(config: Any) -> Any:
    """The config as JSON would read it back: tuples become lists, keys strings."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.loads(json.dumps(plain, sort_keys=True))


def differences(old: Any, new: Any) -> list[str]:
    """Dotted keys whose values differ between two configs in JSON form, as `key: old -> new`."""
    a, b = dict(leaves(old)), dict(leaves(new))
    missing = "(absent)"
    keys = [k for k in {**a, **b} if a.get(k, missing) != b.get(k, missing)]
    return [f"{k}: {a.get(k, missing)!r} -> {b.get(k, missing)!r}" for k in keys]


def _unknown(what: str, key: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    if len(known) <= SHOWN:
        return f"Unknown {what} {key!r}{hint} Known: {', '.join(known)}."
    nearest = difflib.get_close_matches(key, known, n=SHOWN, cutoff=0.0)
    return f"Unknown {what} {key!r}{hint} Nearest of {len(known)}: {', '.join(nearest)}."
