"""Runs the functions of a script against a server and prints what each returned, as one JSON line.

A script is run as `python script.py URL [NAME ...]`; without names all of its functions run. One
that raises has `{"raised": traceback}` as its result, so that one failing case hides no other.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any


def run(*functions: Callable[[str], Any]) -> None:
    url, *names = sys.argv[1:]
    print(json.dumps({f.__name__: _outcome(f, url) for f in functions if _wanted(f, names)}))


def _wanted(function: Callable[[str], Any], names: list[str]) -> bool:
    return not names or function.__name__ in names


def _outcome(function: Callable[[str], Any], url: str) -> Any:
    try:
        result = function(url)
        return asyncio.run(result) if inspect.iscoroutine(result) else result
    except Exception:
        return {"raised": traceback.format_exc()}
