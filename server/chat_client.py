"""`octavo chat` and `octavo complete`: talking to any OpenAI-compatible server from a terminal."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from octavo.engine.errors import OctavoError

from .keys import read_keys
from .settings import Settings

# What could steer a terminal, in text that a model wrote; line ends and tabs may pass.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_COMMANDS = "/clear begins anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


class ServerRefused(OctavoError):
    """The server is not there, or answered with an error."""


class Client:
    """Streams answers from one server."""

    def __init__(self, url: str, api_key: str | None, http: httpx.Client | None = None) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # Tokens may take long to come, above all the first one.
        self._http = http or httpx.Client(timeout=httpx.Timeout(600, connect=10))
        self._http.headers.update(headers)

    def complete(self, body: dict[str, Any]) -> Iterator[str]:
        """Pieces of text of a completion. Raises ServerRefused."""
        for event in self._stream("/v1/completions", body):
            for choice in event.get("choices", ()):
                yield choice.get("text") or ""

    def chat(self, body: dict[str, Any]) -> Iterator[str]:
        """Pieces of text of a chat answer. Raises ServerRefused."""
        for event in self._stream("/v1/chat/completions", body):
            for choice in event.get("choices", ()):
                yield choice.get("delta", {}).get("content") or ""

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        url = self._url + path
        try:
            with self._http.stream("POST", url, json={**body, "stream": True}) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise ServerRefused(_error_of(answer))
                for line in answer.iter_lines():
                    if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
                        event = json.loads(data)
                        if "error" in event:
                            raise ServerRefused(str(event["error"].get("message")))
                        yield event
        except httpx.ConnectError:
            raise ServerRefused(
                f"No server answers at {self._url}; start one with `octavo serve`."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerRefused(f"{self._url}: {error or type(error).__name__}.") from None
        except ValueError:
            raise ServerRefused(f"{url} does not answer in the OpenAI format.") from None


def complete(words: Sequence[str], settings: Settings) -> None:
    """The command `octavo complete`: continue one text and leave."""
    parser = _parser("complete", "Continue a text.", settings)
    parser.add_argument("text", help="what to continue; - reads standard input")
    options = parser.parse_args(words)
    prompt = sys.stdin.read() if options.text == "-" else options.text
    sys.stdout.write(prompt)
    for piece in _client(options).complete({**_sampling(options), "prompt": prompt}):
        _show(piece)
    sys.stdout.write("\n")


def chat(words: Sequence[str], settings: Settings) -> None:
    """The command `octavo chat`: a conversation, one line a turn."""
    parser = _parser("chat", "Talk with a model.", settings)
    parser.add_argument("--system", help="instructions that stand before the conversation")
    options = parser.parse_args(words)
    client = _client(options)
    beginning = [{"role": "system", "content": options.system}] if options.system else []
    messages: list[dict[str, str]] = list(beginning)
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  (gives input() line editing and history)

        sys.stdout.write(f"{_COMMANDS}\n")
    while (line := _ask("> " if interactive else "")) not in (None, "/exit"):
        if line == "/clear":
            messages = list(beginning)
        elif line:
            asked = [*messages, {"role": "user", "content": line}]
            try:
                answer = _answer(client, options, asked)
            except ServerRefused as error:
                if not interactive:
                    raise
                sys.stderr.write(f"{error}\n")  # the conversation so far is kept
            else:
                messages = [*asked, {"role": "assistant", "content": answer}]


def _answer(client: Client, options: argparse.Namespace, messages: list[dict[str, str]]) -> str:
    """Shows an answer as it comes; Ctrl-C keeps what there is of it."""
    pieces: list[str] = []
    try:
        for piece in client.chat({**_sampling(options), "messages": messages}):
            pieces.append(piece)
            _show(piece)
    except KeyboardInterrupt:
        sys.stdout.write(" ...")
    sys.stdout.write("\n")
    return "".join(pieces)


def _ask(prompt: str) -> str | None:
    try:
        return input(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _show(text: str) -> None:
    sys.stdout.write(_UNSAFE.sub("\ufffd", text))
    sys.stdout.flush()


def _parser(command: str, description: str, settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"octavo {command}", description=description)
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    parser.add_argument("--url", default=f"http://{here}:{settings.port}", help="%(default)s")
    parser.add_argument("--model", help="a served name; the server's own choice if not given")
    parser.add_argument("--api-key", default=next(iter(read_keys(settings)), None))
    parser.add_argument("--max-tokens", type=int, default=256, help="%(default)s")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--seed", type=int)
    return parser


def _client(options: argparse.Namespace) -> Client:
    return Client(options.url, options.api_key)


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    names = ("model", "max_tokens", "temperature", "top_p", "seed")
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _error_of(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered with status {answer.status_code}."
