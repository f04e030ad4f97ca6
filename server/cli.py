"""The command `octavo`.

Only what a command needs is imported, and `serve` starts the engine process before it imports a
web framework: both load at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from octavo.engine.errors import ConfigError, OctavoError
from octavo.version import __version__

from . import standard_streams

if TYPE_CHECKING:
    from .settings import Settings

USAGE = """\
usage: octavo COMMAND ...

  serve [MODEL]     serve a checkpoint folder, a hub id, or the bundled model
  chat              talk with a served model
  complete TEXT     let a served model continue a text
  config show       print every setting and where its value came from
  bench serve       load-test a served model
  bench sweep       find the highest rate that keeps a service level
  bench compare     two results of `bench serve`, as ratios
  bench page        results as a page with plots
  bench offline     measure the LLM class in this process
  bench goals       octavo against its peers and its goals, in one run
  bench make-model  write a checkpoint of random weights
  bench ratios      measure what batching and prefix caching are worth
  bench start       measure the time to the first token after a start
  version           print the version

`octavo COMMAND --help` says more.
"""
_SERVE_USAGE = """\
usage: octavo serve [MODEL] [--flag value] [--flag=value] [--switch] [--no-switch]

Each setting is also an OCTAVO_* variable (OCTAVO_MAX_MODEL_LEN) and a key of a YAML file
(max-model-len: 4k) given with --config FILE. Flags win over variables over the file.
Tokens may be written as 32k, sizes as 4GiB, times as 30s or 5m.
"""
_HELP = ("-h", "--help", "help")


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command; the result is the exit status."""
    standard_streams.occupy()
    try:
        return _run(words)
    finally:
        standard_streams.let_go()


def _run(words: Sequence[str] | None) -> int:
    command, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    if command in _HELP:
        sys.stdout.write(USAGE)
        return 0
    run = _COMMANDS.get(command)
    if run is None:
        return _fail(_no_command(command))
    try:
        return run(rest) or 0
    except OctavoError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left: `octavo config show | head`
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        return _fail(f"What there is to say cannot be written: {error.strerror}.")


def serve(words: Sequence[str]) -> int:
    """The daemon, until it is told to stop. Raises OctavoError."""
    if any(word in _HELP[:2] for word in words):
        from .settings.listing import help_text

        sys.stdout.write(f"{_SERVE_USAGE}{help_text()}\n")
        return 0
    import logging

    from .observe.log import configure
    from .settings import load

    loaded = load(words)
    settings = loaded.settings
    configure(settings.log_format, settings.log_level)
    for note in loaded.notes:
        logging.getLogger("octavo").warning("%s", note)
    try:
        _serve(settings)
    except OctavoError as error:
        if settings.log_format != "json":
            raise
        logging.getLogger("octavo").error("%s", error)  # the last line is for machines, too
        return 1
    return 0


def _serve(settings: Settings) -> None:
    from octavo.engine.assembly import build_async_engine

    from .listener import listen
    from .models import find_model
    from .terminal import StartupProgress

    with StartupProgress(log_format=settings.log_format) as progress:
        listener = listen(settings.host, settings.port, unread_seconds=settings.slow_reader_timeout)
        progress("starting", 0, 0)
        folder = find_model(settings, progress)
        engine = build_async_engine(
            settings.engine_config(folder),
            max_restarts=settings.max_engine_restarts,
            hang_timeout=settings.hang_timeout,
        )

        from .app import serve as run_daemon

        run_daemon(settings, folder=folder, engine=engine, listener=listener, progress=progress)


def chat(words: Sequence[str]) -> None:
    from . import chat_client
    from .settings import load

    chat_client.chat(words, load().settings)


def complete(words: Sequence[str]) -> None:
    from . import chat_client
    from .settings import load

    chat_client.complete(words, load().settings)


def config(words: Sequence[str]) -> None:
    """`config show [flags of serve]`, and `config table` for the documentation."""
    from .settings import load
    from .settings.listing import markdown, table

    what, *flags = words or ["show"]
    if what == "show":
        loaded = load(flags)
        sys.stdout.write(table(loaded) + "\n")
        sys.stderr.writelines(f"{note}\n" for note in loaded.notes)
    elif what == "table":
        sys.stdout.write(markdown())
    else:
        raise ConfigError("usage: octavo config show [flags of serve], or octavo config table")


def bench(words: Sequence[str]) -> int:
    """`bench serve` and its sisters: what a server can do, in figures."""
    from importlib import import_module

    what, *flags = words or ["--help"]
    if what not in _BENCHES:
        raise ConfigError(
            f"usage: octavo bench {'|'.join(_BENCHES)} [--flag value] ..., see --help"
        )
    return int(import_module(f"octavo.{_BENCHES[what]}").main(flags))


def version(words: Sequence[str]) -> None:
    del words
    sys.stdout.write(f"octavo {__version__}\n")


_BENCHES = {
    "serve": "loadtest.command",
    "sweep": "loadtest.sweep",
    "compare": "loadtest.compare",
    "page": "loadtest.page",
    "offline": "server.bench_offline",
    "goals": "loadtest.goals.command",
    "make-model": "loadtest.make_model",
    "ratios": "loadtest.ratios",
    "start": "loadtest.startup",
}
_COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "serve": serve,
    "bench": bench,
    "chat": chat,
    "complete": complete,
    "config": config,
    "version": version,
    "--version": version,
}


def _no_command(command: str) -> str:
    import difflib

    near = difflib.get_close_matches(command, _COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else "`octavo --help` lists them."
    return f"There is no command {command}; {hint}"


def _fail(sentence: str) -> int:
    from .observe.log import printable  # a sentence may quote a file from the internet

    with contextlib.suppress(OSError):
        sys.stderr.write(f"octavo: {printable(sentence)}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
