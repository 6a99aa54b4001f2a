# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the sources; and what the command line does not import to answer --help."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "metaicl"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    .removesuffix(".__init__")
    .removesuffix("__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# A name stands for a module or a whole room. Every module may import its own room, and `files`, a leaf.
LEAVES = ("files",)
ALLOWED: dict[str, tuple[str, ...]] = {
    "": (),
    "files": (),
    "episode": (),
    "sharding": (),
    "writer": (),
    "checkpoint": (),
    "configuration": (),
    "defaults": ("configuration",),
    "models": (),
    "curricula": (),
    "report": (),
    "calibration": (),
    "losses": ("episode",),
    "scope": ("episode",),
    "learners": ("episode", "losses", "models"),
    "data": ("episode",),
    "features": ("data.pool", "data.images", "models"),
    "distances": ("data.pool",),
    "analysis": ("episode", "losses", "learners"),
    "evaluate": ("episode", "losses", "learners.base"),
    "estimator": ("episode", "losses", "learners", "models", "checkpoint", "calibration", "scope"),
    "train": ("episode", "losses", "learners.base", "evaluate", "sharding", "checkpoint", "writer"),
    "experiment": ("*",),  # the composer: everything but the command lines
    "command_line": (),
    "main": ("experiment", "command_line"),
    "distances.__main__": ("experiment", "command_line"),
    "predict": ("experiment", "command_line"),
    "prepare": ("data", "experiment", "command_line"),
}
COMMAND_LINES = ("main", "distances.__main__", "predict", "prepare")
FENCED: dict[str, tuple[str, ...]] = {
    "flax.linen": ("models",),
    "orbax": ("checkpoint",),
    "ott": ("distances",),
    "grain": ("data.pipeline", "checkpoint"),
    "tensorflow_datasets": ("data.tfds_album",),
    "tensorflow": (),
    "torch": (),
    "transformers": (),
    "tokenizers": ("data.tokens",),
    "huggingface_hub": ("models.hub",),
    "ml_collections": ("configuration", "defaults", "experiment", "main"),
}


def within(name: str, room: str) -> bool:
    """Whether a dotted name is `room` or something in it."""
    return name == room or name.startswith(f"{room}.")


def imported(source: str, module: str, is_package: bool) -> set[str]:
    """Dotted names that a module imports anywhere in it: `from a import b` gives `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["metaicl", *filter(None, module.split("."))]
                above = here[: len(here) - node.level + is_package]
                base = ".".join([*above, *filter(None, [base])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def imports_of(module: str) -> set[str]:
    path = MODULES[module]
    return imported(path.read_text(), module, path.name == "__init__.py")


def ours(names: set[str]) -> set[str]:
    """The modules of this package among the imported names, without the `metaicl.`."""
    found = set()
    for name in names:
        if within(name, "metaicl"):
            inner = name.removeprefix("metaicl").removeprefix(".")
            while inner not in MODULES:  # an attribute of a module
                inner = inner.rpartition(".")[0]
            found.add(inner)
    return found


def room_of(module: str) -> str:
    return module.split(".")[0]


def wrong_arrows(module: str, names: set[str]) -> list[str]:
    """Imports among `names` that `module` may not have."""
    allowed = (*(ALLOWED[module] if module in COMMAND_LINES else ALLOWED[room_of(module)]), *LEAVES)
    if "*" in allowed:
        allowed = tuple(room for room in ALLOWED if room and room not in COMMAND_LINES)
    return sorted(
        target
        for target in ours(names)
        if target and room_of(target) != room_of(module) and not any(within(target, a) for a in allowed)
    )


def wrong_libraries(module: str, names: set[str]) -> list[str]:
    """Imports of fenced libraries outside their fence."""
    return sorted(
        name
        for name in names
        for library, homes in FENCED.items()
        if within(name, library) and not any(within(module, home) for home in homes)
    )


def test_the_reader_of_imports_sees_every_form():
    source = """
import jax
import orbax.checkpoint as ocp
from metaicl import losses, sharding
from metaicl.data import pool
def late():
    from flax import linen as nn
    from . import base
    from ..data.pool import Pool
"""
    found = imported(source, "learners.maml", False)
    assert found >= {
        "jax",
        "orbax.checkpoint",
        "flax.linen",
        "metaicl.learners.base",
        "metaicl.data.pool.Pool",
    }
    assert ours(found) == {"losses", "sharding", "data.pool", "learners.base"}
    assert wrong_arrows("learners.maml", found) == ["data.pool", "sharding"]
    assert wrong_libraries("learners.maml", found) == ["flax.linen", "orbax.checkpoint"]
    assert ours(imported("from . import base\nfrom .base import x", "learners", True)) == {"learners.base"}


def test_every_room_is_in_the_table():
    assert not {room_of(module) for module in MODULES} - set(ALLOWED), "new rooms need a line in ALLOWED"


@pytest.mark.parametrize("module", MODULES)
def test_imports(module):
    names = imports_of(module)
    assert not wrong_arrows(module, names), f"metaicl/{module} may not import these"
    assert not wrong_libraries(module, names), f"metaicl/{module} may not import these"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_licence_line_and_a_docstring(module):
    source = MODULES[module].read_text()
    assert source.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(source)), f"metaicl/{module} says nothing about itself"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.name)
def test_tests_are_collected_without_the_oracles(path):
    """`pip install -e ".[test]" && pytest` must run: an oracle is asked for by `pytest.importorskip`."""
    oracles = ("torch", "sklearn", "ot", "transformers")
    found = imported(path.read_text(), f"tests.{path.stem}", False)
    assert not [name for name in found if any(within(name, oracle) for oracle in oracles)]


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("metaicl.main", ("--config", "--workdir")),
        ("metaicl.distances", ("--album", "--workdir")),
        ("metaicl.predict", ("--run", "--support", "--out_of_scope")),
        ("metaicl.prepare", ("meta_album", "cifar_fs", "--size")),
    ],
)
def test_help_answers_without_the_heavy_libraries(module, flags):
    program = (
        "import atexit, runpy, sys\n"
        "say = lambda: print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)\n"
        "atexit.register(say)\n"
        f"sys.argv[:] = ['{module}', '--help']\n"
        f"runpy.run_module('{module}', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0 and all(flag in done.stdout for flag in flags)
    heavy = {
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax",
        "grain",
        "matplotlib",
        "cv2",
        "tensorflow",
        "torch",
        "ott",
    }
    loaded = set(done.stderr.split())
    assert "metaicl" in loaded and not heavy & loaded


def test_help_of_the_module():
    command = [sys.executable, "-m", "metaicl.main", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0 and "--config" in done.stdout
