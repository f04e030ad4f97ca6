"""`Threads`: where the front end does what would keep the event loop.

While one request's megabytes are parsed and tokenized, everybody else's tokens must go out and
probes be answered. Little is done at once, because changing threads costs more. What is large has
a thread of its own, so that the requests of an ordinary day never queue behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

INLINE_BYTES = 4 << 10  # tokenized in about 2 ms
LARGE_BYTES = 128 << 10  # in about 0.1 s

Result = TypeVar("Result")


class Threads:
    """For one event loop. What waits for a thread is given up when its caller is cancelled."""

    def __init__(self) -> None:
        self._ordinary = ThreadPoolExecutor(2, "ordinary")
        self._large = ThreadPoolExecutor(1, "large")

    async def run(self, work: Callable[[], Result], *, size: int) -> Result:
        """The result of `work`, which goes through about `size` bytes; raises what it raises."""
        if size <= INLINE_BYTES:
            return work()
        threads = self._ordinary if size <= LARGE_BYTES else self._large
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, copy_context().run, work)

    async def close(self) -> None:
        """Nothing more begins; what is being done is not waited for."""
        for threads in (self._ordinary, self._large):
            threads.shutdown(wait=False, cancel_futures=True)
