"""The standard streams of a command: open from its beginning, and in nobody's way at its end."""

from __future__ import annotations

import os
import sys


def occupy() -> None:
    """Put /dev/null in the place of what whoever started us has closed.

    Else the next file or socket would get the number of a standard stream, and somebody's
    messages would be written into a client's connection.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    # Python has none for a stream that was closed when it began.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def let_go() -> None:
    """Write what is still to be written; where that cannot be done, forget it.

    Else Python would try again when it ends, and end with an error of its own making.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except ValueError:
            pass  # closed by us
