"""Heavy work beside the event loop: what is large keeps nobody waiting who is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from octavo.engine.bundled import TARGET
from octavo.server.observe.log import current_request_id
from octavo.server.text.tokenizer import Tokenizer
from octavo.server.threads import INLINE_BYTES, LARGE_BYTES, Threads


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    threads = Threads()
    yield threads
    await threads.close()


async def test_little_is_done_here_and_more_in_a_thread(threads: Threads) -> None:
    here = threading.get_ident()
    assert await threads.run(threading.get_ident, size=INLINE_BYTES) == here
    assert await threads.run(threading.get_ident, size=INLINE_BYTES + 1) != here


async def test_what_is_large_lets_the_rest_pass(threads: Threads) -> None:
    go = threading.Event()
    large = [asyncio.create_task(threads.run(go.wait, size=LARGE_BYTES + 1)) for _ in range(5)]
    await asyncio.sleep(0)
    try:
        for _ in range(5):
            assert await threads.run(lambda: "done", size=LARGE_BYTES) == "done"
        assert not any(task.done() for task in large)
    finally:
        go.set()
    assert all(await asyncio.gather(*large))


async def test_who_leaves_the_line_has_nothing_done_for_it(threads: Threads) -> None:
    go, done = threading.Event(), []
    first = asyncio.create_task(threads.run(go.wait, size=LARGE_BYTES + 1))
    second = asyncio.create_task(threads.run(lambda: done.append(2), size=LARGE_BYTES + 1))
    await asyncio.sleep(0)
    second.cancel()
    go.set()
    await first
    await threads.run(lambda: done.append(3), size=LARGE_BYTES + 1)
    assert done == [3]


async def test_errors_come_back_and_the_requests_id_goes_along(threads: Threads) -> None:
    current_request_id.set("request-7")
    assert await threads.run(current_request_id.get, size=LARGE_BYTES) == "request-7"
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0, size=LARGE_BYTES)


def test_other_threads_run_while_a_text_is_tokenized() -> None:
    """The library keeps the interpreter to itself unless it is asked in the right way."""
    tokenizer = Tokenizer.from_folder(TARGET)
    text = "Once upon a time there was a fox who lived in the wood. " * 6000
    ended = threading.Event()

    def work() -> None:
        tokenizer.encode(text)
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    turns = 0
    while not ended.wait(0.001):
        turns += 1
    thread.join()
    assert turns > 10
