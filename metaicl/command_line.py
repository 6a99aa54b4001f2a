# SPDX-License-Identifier: Apache-2.0
"""What the command lines share: exit statuses, and errors in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

EXPECTED = (ValueError, OSError, ArithmeticError)  # what bad input raises; anything else is a defect


def exit_status(
    work: Callable[[], int | None],
    *,
    debug: bool,
    interrupted: str,
    expected: tuple[type[Exception], ...] = (),
    cause: Callable[[BaseException], BaseException] = lambda error: error,
) -> int:
    """Does the work of a command and returns its exit status; what it raises is told in one line on stderr.

    Args:
      work: returns a status, or None for 0.
      debug: raise errors as they are.
      interrupted: what to say after Ctrl-C (status 130).
      expected: errors of bad input beside `EXPECTED`.
      cause: from an error to what is told of it.
    """
    try:
        return work() or 0
    except KeyboardInterrupt:
        print(f"\nInterrupted. {interrupted}", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        told = cause(error)
        print(f"error: {' '.join(str(told).split())}", file=sys.stderr)
        if not isinstance(told, (*EXPECTED, *expected)):
            print("This looks like a defect; --debug shows the traceback.", file=sys.stderr)
        return 1


def run_command(main: Callable[[Sequence[str]], int]) -> None:
    """Runs a command line with what was typed, and exits with its status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main(sys.argv))
