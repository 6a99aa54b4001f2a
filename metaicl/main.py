# SPDX-License-Identifier: Apache-2.0
"""Flags to experiment: `python -m metaicl.main --config=configs/loo.py`."""

from __future__ import annotations

import os
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from metaicl.command_line import exit_status

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with its argument: configs/loo.py:quick. Override with --config.key=value."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Root of all outputs; runs/<name of the config> by default.")
_RUN = flags.DEFINE_string("run", None, "Number (from 0) or name of the one run to do; all by default.")
_LIST = flags.DEFINE_bool("list", False, "Print the names of the runs and stop.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, for jobs of several processes."
)
_PROCESS = flags.DEFINE_integer("process", 0, "Number of this process.")
_PROCESSES = flags.DEFINE_integer("processes", 1, "Number of processes of the job.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the job that a TPU pod or SLURM describes.")


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    if any(a in ("--help", "-h", "-help", "--helpfull") for a in argv[1:]):
        print(f"{__doc__}\n\n{FLAGS.module_help(FLAGS.find_module_defining_flag('workdir'))}")
        return 0

    def work() -> int:
        rest = _parsed(argv)
        if _CONFIG.value is None or len(rest) > 1:
            what = f"Unknown argument {rest[1]!r}." if len(rest) > 1 else "--config is missing."
            raise ValueError(f"{what} Example: python -m metaicl.main --config=configs/loo.py:quick")
        return _run(argv)

    return exit_status(
        work,
        debug="--debug" in argv,
        interrupted="The same command goes on from the newest checkpoint.",
        expected=(flags.Error,),
        cause=_unwrapped,
    )


def _parsed(argv: Sequence[str]) -> list[str]:
    """Parses the flags; returns what is none of them."""
    try:
        return FLAGS(list(argv))
    except (KeyError, AttributeError) as error:
        said = error.args[0].args[0] if isinstance(error.args[0], KeyError) else error.args[0]
        key, _, hint = str(said).partition("\n")
        raise ValueError(f"The config has no key {key}. {hint}") from error


def _unwrapped(error: BaseException) -> BaseException:
    """What a config file raised, without the errors that ml_collections and absl wrap around it."""
    wrapped = ("Error whilst parsing config file", "Configuration is not available")
    while any(text in str(error) for text in wrapped) and (inner := error.__cause__ or error.__context__):
        error = inner
    missing = re.search(r"^Failed loading config .*No such file or directory: (.+)", str(error), re.DOTALL)
    return FileNotFoundError(f"There is no config file {missing[1]}.") if missing else error


def _run(argv: Sequence[str]) -> int:
    # Everything heavy is imported here, so that --help answers at once.
    from metaicl.experiment import chosen_runs, refuse_vain, run_experiment

    _CONFIG.value.runs  # noqa: B018 (raises what reading a file for the config raised)
    refuse_vain(_CONFIG.value, config_flags.get_override_values(FLAGS["config"]))
    if _LIST.value:
        print("\n".join(f"{i} {name}" for i, name in enumerate(chosen_runs(_CONFIG.value, None))))
        return 0
    _join()
    workdir = _WORKDIR.value or pathlib.Path("runs") / _default_name()
    command = ["python", "-m", "metaicl.main", *argv[1:]]
    table = run_experiment(_CONFIG.value, workdir, only=_RUN.value, command=command)
    print(table)
    return 0


def _default_name() -> str:
    """Name of the config's file and its argument: configs/loo.py:quick -> loo-quick."""
    given = config_flags.get_config_filename(FLAGS["config"])
    path, _, argument = given.partition(".py:")
    name = pathlib.Path(path.removesuffix(".py")).name
    return re.sub(r"[^\w=.,-]+", "_", f"{name}-{argument}" if argument else name)


def _join() -> None:
    """Joins the other processes of the job, if it has any."""
    import jax

    if _COORDINATOR.value:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    elif _DISTRIBUTED.value:
        jax.distributed.initialize()


def run() -> None:
    """Entry point of the command line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    status = main(sys.argv)
    jax = sys.modules.get("jax")
    if status and jax is not None and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # an orderly exit would wait for the other processes, which wait for this one
    sys.exit(status)


if __name__ == "__main__":
    run()
