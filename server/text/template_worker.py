"""`TemplateWorker`: chat templates rendered in a helper process, with limits of time and memory.

Templates come with checkpoints from the internet, or with requests, and are programs. One that
does not end, or doubles a string forty times, costs its helper process and the request; the next
request starts a new helper. No thread waits for it, and the event loop least of all.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from .template_sandbox import Sandbox, TemplateFault

LENGTH = struct.Struct("<I")  # before each message, in bytes
_PATIENCE_SECONDS = 10.0  # of real time beside the CPU time, for a busy machine


class Renderer(Protocol):
    """Runs the templates of a daemon."""

    async def check(self, source: str) -> None:
        """Raises TemplateFault: this template can never be rendered."""

    async def render(self, source: str, variables: Mapping[str, Any], *, longest: int) -> str:
        """At most `longest` characters. Raises TemplateFault: why there is no such text."""

    async def close(self) -> None:
        """End what was started."""


class InProcess:
    """Without limits of time: for templates that one has written oneself."""

    def __init__(self) -> None:
        self._sandbox = Sandbox()

    async def check(self, source: str) -> None:
        self._sandbox.compile(source)

    async def render(self, source: str, variables: Mapping[str, Any], *, longest: int) -> str:
        return self._sandbox.render(source, variables, longest=longest)

    async def close(self) -> None:
        pass


class TemplateWorker:
    """One helper process, started when it is first needed. For one event loop.

    Args:
        seconds: CPU time a rendering may take.
        memory: bytes it may take.
    """

    def __init__(self, *, seconds: float = 2.0, memory: int = 1 << 30) -> None:
        self._seconds = seconds
        self._command = (
            # -P: no module is taken from the folder it is started in
            *(sys.executable, "-P", "-m", "octavo.server.text.template_helper"),
            *(str(memory), str(seconds), str(os.getpid())),
        )
        self._helper: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._under_way: set[asyncio.Task[str]] = set()

    async def check(self, source: str) -> None:
        await self._ask({"source": source, "variables": None})

    async def render(self, source: str, variables: Mapping[str, Any], *, longest: int) -> str:
        return await self._ask({"source": source, "variables": variables, "longest": longest})

    async def close(self) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._end()

    async def _ask(self, question: Mapping[str, Any]) -> str:
        content = json.dumps(question).encode()
        # Who leaves does not take the answer's reader along: it would be taken for the next one's.
        task = asyncio.create_task(self._exchange(content))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _exchange(self, content: bytes) -> str:
        async with self._turn:
            try:
                async with asyncio.timeout(self._seconds + _PATIENCE_SECONDS):
                    answer = await self._sent(content)
            except (TimeoutError, EOFError, ConnectionError):
                await self._end()
                raise TemplateFault("it takes too much time or memory") from None
            except asyncio.CancelledError:
                await self._end()
                raise
        if "fault" in answer:
            raise TemplateFault(answer["fault"])
        return answer["text"]

    async def _sent(self, content: bytes) -> dict[str, str]:
        if self._helper is None or self._helper.returncode is not None:
            pipe = asyncio.subprocess.PIPE
            self._helper = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
            )
        helper = self._helper
        assert helper.stdin is not None and helper.stdout is not None, "started with pipes"
        helper.stdin.write(LENGTH.pack(len(content)) + content)
        await helper.stdin.drain()
        (length,) = LENGTH.unpack(await helper.stdout.readexactly(LENGTH.size))
        answer: dict[str, str] = json.loads(await helper.stdout.readexactly(length))
        return answer

    async def _end(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            if helper.returncode is None:
                helper.kill()
            await helper.wait()
