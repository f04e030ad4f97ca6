"""The program that renders chat templates, in a process that may be killed at any time:

    python -m octavo.server.text.template_helper MEMORY_BYTES CPU_SECONDS PARENT_PID

It reads one `Rendering` after another from standard input and writes what became of each. A
template that takes too much memory or time takes this process with it and nothing else.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any, BinaryIO

from octavo.engine.lifeline import die_with

from .template_sandbox import Sandbox, TemplateFault
from .template_worker import LENGTH


def main(arguments: list[str]) -> None:
    memory, cpu_seconds, parent = int(arguments[0]), float(arguments[1]), int(arguments[2])
    die_with(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory, used + memory))
    sandbox = Sandbox()
    while (asked := _read(sys.stdin.buffer)) is not None:
        # Its signal, which nobody catches, ends the process in the middle of whatever it does.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        answer = _answer(sandbox, json.loads(asked))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(sys.stdout.buffer, answer)


def _answer(sandbox: Sandbox, asked: dict[str, Any]) -> dict[str, str]:
    try:
        if asked["variables"] is None:
            sandbox.compile(asked["source"])
            return {"text": ""}
        text = sandbox.render(asked["source"], asked["variables"], longest=asked["longest"])
    except TemplateFault as fault:
        return {"fault": str(fault)}
    except MemoryError:
        return {"fault": "it takes too much memory"}
    return {"text": text}


def _read(pipe: BinaryIO) -> bytes | None:
    length = pipe.read(LENGTH.size)
    return pipe.read(*LENGTH.unpack(length)) if len(length) == LENGTH.size else None


def _write(pipe: BinaryIO, answer: dict[str, str]) -> None:
    content = json.dumps(answer).encode()  # in ASCII: also what a template made of halves of pairs
    pipe.write(LENGTH.pack(len(content)) + content)
    pipe.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
