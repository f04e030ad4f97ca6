"""`ChatTemplate`: messages to a prompt, with the Jinja template that came with the checkpoint.

The template runs in a sandbox, and words of a user which look like a control token (`<|im_end|>`)
stay words: while rendering, each look-alike carries a mark inside, and the rendered prompt is then
tokenized with only the unmarked control tokens, the template's own, taken as such.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from octavo.engine.errors import BrokenCheckpoint, ConfigError, InvalidParameter

from .tokenizer import Tokenizer, read_json

# Unicode sets these aside for a program's own use: no text should have them.
_MARKS = [chr(point) for point in range(0xFDD0, 0xFDF0)]

Message = Mapping[str, Any]
"""A message as it came over the wire: role, content, tool_calls ..."""


class ChatTemplate:
    """A checkpoint's template, or several by name: `tool_use` is taken where tools are given."""

    def __init__(self, templates: str | Mapping[str, str], tokenizer: Tokenizer) -> None:
        """Raises ConfigError: a template is not valid Jinja."""
        if isinstance(templates, str):
            templates = {"default": templates}
        self.sources = dict(templates)
        self._tokenizer = tokenizer
        self._environment = _environment()
        self._compiled = {name: self._compile(name, text) for name, text in templates.items()}

    @classmethod
    def from_folder(cls, folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The checkpoint's own template; None when it has none (a base model)."""
        templates = _templates_of(folder, tokenizer)
        return cls(templates, tokenizer) if templates else None

    @classmethod
    def from_setting(cls, value: str, tokenizer: Tokenizer) -> ChatTemplate:
        """`value` is a file, or the template itself.

        Raises:
            ConfigError: it is neither.
        """
        if "{" in value:
            return cls(value, tokenizer)
        try:
            return cls(Path(value).read_text("utf-8"), tokenizer)
        except OSError as error:
            raise ConfigError(
                f"The chat template {value!r} is neither a file ({error.strerror}) nor a template."
            ) from None

    @property
    def text(self) -> str:
        """All of its sources: what they speak of tells how the model writes."""
        return "\n".join(self.sources.values())

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt as text, control tokens written out.

        `continue_final_message` leaves the last message open, to be continued by the model.
        `variables` are further template variables.

        Raises:
            InvalidParameter: the template refuses these messages.
        """
        name = "tool_use" if tools and "tool_use" in self._compiled else "default"
        template = self._compiled.get(name) or next(iter(self._compiled.values()))
        prepared = [self._prepared(message) for message in messages]
        end = _unused_mark((prepared, tools, documents, variables))
        if continue_final_message:
            _require_open_end(prepared, add_generation_prompt)
            prepared[-1]["content"] += end
        try:
            text = template.render(
                {
                    **self._tokenizer.special_tokens,
                    **variables,
                    "messages": prepared,
                    "tools": tools,
                    "documents": documents,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except Exception as error:  # a template is a program: whatever it raises, it refuses
            raise InvalidParameter(
                f"The model's chat template refuses these messages: {error}.", param="messages"
            ) from error
        if not continue_final_message:
            return text
        if end not in text:
            raise InvalidParameter(
                "The model's chat template drops the last message, which cannot be continued.",
                param="continue_final_message",
            )
        return text[: text.rindex(end)]

    def encode(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """The prompt as token ids; control tokens in the caller's strings stay text.

        Takes and raises what `render` does.
        """
        given = (messages, tools, documents, variables)
        mark = _unused_mark(given)
        touched = False

        def break_up(text: str) -> str:
            nonlocal touched
            broken = self._tokenizer.marked(text, mark=mark)
            touched = touched or broken != text
            return broken

        prepared = [self._prepared(message) for message in messages]
        safe_messages, safe_tools, safe_documents, safe_variables = _map_strings(
            (prepared, tools, documents, variables), break_up
        )
        text = self.render(
            safe_messages,
            tools=safe_tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            documents=safe_documents,
            **safe_variables,
        )
        if touched:
            return self._tokenizer.encode_marked(text, mark=mark)
        return self._tokenizer.encode(text, add_special_tokens=False, parse_special=True)

    def _compile(self, name: str, source: str) -> jinja2.Template:
        try:
            return self._environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(
                f"The chat template {name!r} is not valid Jinja: {str(error).rstrip('.')}."
            ) from None

    def _prepared(self, message: Message) -> dict[str, Any]:
        """A message as templates expect it: plain text content, arguments as an object."""
        prepared = {"content": None, **message}
        if isinstance(prepared["content"], Sequence) and not isinstance(prepared["content"], str):
            prepared["content"] = "".join(part["text"] for part in prepared["content"])
        if prepared.get("role") == "developer" and not self._knows("developer"):
            prepared["role"] = "system"
        if prepared.get("tool_calls"):
            prepared["tool_calls"] = [_with_parsed_arguments(c) for c in prepared["tool_calls"]]
        return prepared

    def _knows(self, role: str) -> bool:
        return any(role in source for source in self.sources.values())


def _require_open_end(messages: Sequence[Message], add_generation_prompt: bool) -> None:
    if add_generation_prompt:
        raise InvalidParameter(
            "continue_final_message and add_generation_prompt exclude each other.",
            param="continue_final_message",
        )
    if not messages or not isinstance(messages[-1]["content"], str):
        raise InvalidParameter(
            "continue_final_message needs a last message with text in it.",
            param="continue_final_message",
        )


def _templates_of(folder: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """Every place where checkpoints keep templates, the newest convention first."""
    templates: dict[str, str] = {}
    file = folder / "chat_template.jinja"
    old_file = read_json(folder / "chat_template.json").get("chat_template")
    listed = tokenizer.config.get("chat_template")
    if file.is_file():
        templates["default"] = file.read_text("utf-8")
    elif isinstance(old_file, str):
        templates["default"] = old_file
    elif isinstance(listed, str):
        templates["default"] = listed
    elif isinstance(listed, Sequence):
        try:
            templates = {entry["name"]: entry["template"] for entry in listed}
        except (KeyError, TypeError):
            raise BrokenCheckpoint(
                f"chat_template in {folder / 'tokenizer_config.json'} is neither a template nor a "
                f"list of named ones."
            ) from None
    for extra in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[extra.stem] = extra.read_text("utf-8")
    return templates


def _with_parsed_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """The wire carries arguments as a JSON string; templates write them out themselves."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return dict(call)  # written out as it is
    if not isinstance(arguments, dict):
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}}


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with every string in it, keys included, put through `change`."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(k, change): _map_strings(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value


def _unused_mark(value: Any) -> str:
    """A character that occurs in no string of `value`."""
    used: set[str] = set()

    def note(text: str) -> str:
        used.update(text)
        return text

    _map_strings(value, note)
    free = next((mark for mark in _MARKS if mark not in used), None)
    if free is None:
        raise InvalidParameter(
            "The messages use all of U+FDD0 to U+FDEF, which Unicode keeps for programs.",
            param="messages",
        )
    return free


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`: training tools mark the assistant's words with it; here it is silent."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    """What templates on the hub are written for, without a way out of the sandbox."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationTag],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a model to read: characters as they are, nothing escaped for a browser."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
