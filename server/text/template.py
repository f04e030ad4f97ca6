"""`ChatTemplate`: messages to a prompt, with the Jinja template that came with the checkpoint.

Words of a user which look like a control token (`<|im_end|>`) stay words: while rendering, each
look-alike carries a mark inside, and the rendered prompt is then tokenized with only the unmarked
control tokens, the template's own, taken as such.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.engine.errors import BrokenCheckpoint, ConfigError, InvalidParameter

from .template_sandbox import Sandbox, TemplateFault
from .tokenizer import Tokenizer, read_json

# Unicode sets these aside for a program's own use: no text should have them.
_MARKS = [chr(point) for point in range(0xFDD0, 0xFDF0)]

Message = Mapping[str, Any]
"""A message as it came over the wire: role, content, tool_calls ..."""


_LONGEST = 1 << 20  # characters that a template may make of nothing
_LONGEST_PER_CHARACTER = 4  # and of each character that it is given


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """A template that is to be rendered, and what must be known of that afterwards."""

    source: str
    variables: Mapping[str, Any]
    longest: int  # characters that may come out
    end: str | None = None  # a mark in the text behind which it is cut off
    mark: str | None = None  # breaks up what must not be taken for a control token


class ChatTemplate:
    """A checkpoint's template, or several by name: `tool_use` is taken where tools are given."""

    def __init__(self, templates: str | Mapping[str, str], tokenizer: Tokenizer) -> None:
        """Raises ConfigError: a template is not valid Jinja."""
        if isinstance(templates, str):
            templates = {"default": templates}
        self.sources = dict(templates)
        self._tokenizer = tokenizer
        self._sandbox = Sandbox()
        for name, source in templates.items():
            try:
                self._sandbox.parse(source)
            except TemplateFault as fault:
                raise ConfigError(
                    f"The chat template {name!r} is not valid Jinja: {fault}."
                ) from None

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

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """The prompt as text, control tokens written out. Runs the template here and now.

        Takes and raises what `prepare` and `text_of` do.
        """
        return self.text_of(*self._run(self.prepare(messages, False, **options)))

    def encode(self, messages: Sequence[Message], **options: Any) -> list[int]:
        """The prompt as token ids; control tokens in the caller's strings stay text.

        Takes and raises what `prepare` and `ids_of` do.
        """
        return self.ids_of(*self._run(self.prepare(messages, **options)))

    def _run(self, rendering: Rendering) -> tuple[Rendering, str]:
        source, variables, longest = rendering.source, rendering.variables, rendering.longest
        try:
            return rendering, self._sandbox.render(source, variables, longest=longest)
        except TemplateFault as fault:
            raise refusal(fault) from None

    def prepare(
        self,
        messages: Sequence[Message],
        literal: bool = True,
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> Rendering:
        """What is to be rendered, for whoever runs templates.

        Args:
            continue_final_message: the last message is left open, to be continued by the model.
            literal: control tokens in the caller's strings are to stay text.
            variables: further template variables.

        Raises:
            InvalidParameter: the last message cannot be continued, or the marks are used up.
        """
        name = "tool_use" if tools and "tool_use" in self.sources else "default"
        source = self.sources.get(name) or next(iter(self.sources.values()))
        prepared = [self._prepared(message) for message in messages]
        given: Any = (prepared, tools, documents, variables)
        marks, length = _unused_marks(given)
        touched = False

        def break_up(text: str) -> str:
            nonlocal touched
            broken = self._tokenizer.marked(text, mark=marks[0])
            touched = touched or broken != text
            return broken

        if literal:
            given = _map_strings(given, break_up)
        prepared, tools, documents, variables = given
        if continue_final_message:
            _require_open_end(prepared, add_generation_prompt)
            prepared[-1]["content"] += marks[1]
        return Rendering(
            source=source,
            variables={
                **self._tokenizer.special_tokens,
                **variables,
                "messages": prepared,
                "tools": tools,
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
            },
            longest=_LONGEST + _LONGEST_PER_CHARACTER * length,
            end=marks[1] if continue_final_message else None,
            mark=marks[0] if touched else None,
        )

    def text_of(self, rendering: Rendering, text: str) -> str:
        """The prompt, of what was rendered.

        Raises:
            InvalidParameter: the template dropped the message that is to be continued.
        """
        if rendering.end is None:
            return text
        if rendering.end not in text:
            raise InvalidParameter(
                "The model's chat template drops the last message, which cannot be continued.",
                param="continue_final_message",
            )
        return text[: text.rindex(rendering.end)]

    def ids_of(self, rendering: Rendering, text: str) -> list[int]:
        """The prompt's token ids, of what was rendered. Raises what `text_of` does."""
        text = self.text_of(rendering, text)
        if rendering.mark is not None:
            return self._tokenizer.encode_marked(text, mark=rendering.mark)
        return self._tokenizer.encode(text, add_special_tokens=False, parse_special=True)

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


def _unused_marks(value: Any) -> tuple[tuple[str, str], int]:
    """Two characters that occur in no string of `value`, and how many characters it has."""
    used: set[str] = set()
    length = 0

    def note(text: str) -> str:
        nonlocal length
        length += len(text)
        used.update(text)
        return text

    _map_strings(value, note)
    free = [mark for mark in _MARKS if mark not in used]
    if len(free) < 2:
        raise InvalidParameter(
            "The messages use all of U+FDD0 to U+FDEF, which Unicode keeps for programs.",
            param="messages",
        )
    return (free[0], free[1]), length


def refusal(fault: TemplateFault) -> InvalidParameter:
    """What a client is told of it."""
    return InvalidParameter(
        f"The model's chat template refuses these messages: {str(fault).rstrip('.')}.",
        param="messages",
    )
