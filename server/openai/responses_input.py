"""A request for a response in the words of a chat: the same conversation, tools and form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.engine.errors import InvalidParameter, RequestError

from .responses_schema import InputItem, InputPart, ResponsesRequest

LOGPROBS = "message.output_text.logprobs"  # in `include`
_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text")
_THOUGHTS = ("reasoning_text",)
_UNOFFERED = {
    "previous_response_id": "this server keeps no former answers; send the whole conversation",
    "conversation": "this server keeps no conversations; send the whole one as input",
    "prompt": "this server keeps no prompts; send the text itself",
    "background": "this server keeps no answers to be asked for later; stream it instead",
}
_SAME_NAME = (
    *("model", "temperature", "top_p", "tool_choice", "parallel_tool_calls", "seed"),
    *("top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "stop"),
    *("stop_token_ids", "min_tokens", "ignore_eos", "logit_bias", "chat_template_kwargs"),
    *("priority", "request_id", "cache_salt", "timeout"),
)

Message = dict[str, Any]


def as_chat(body: ResponsesRequest, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a chat that asks for the same.

    Args:
        raw: the body as it came.

    Raises:
        InvalidParameter: an item is wrong, or what is asked for is not offered.
    """
    for name, why in _UNOFFERED.items():
        if getattr(body, name):
            raise InvalidParameter(f"{name}: {why}.", param=name)
    chat: dict[str, Any] = {name: raw[name] for name in _SAME_NAME if raw.get(name) is not None}
    chat["messages"] = _messages(body)
    if body.max_output_tokens is not None:
        chat["max_completion_tokens"] = body.max_output_tokens
    if body.tools:
        chat["tools"] = [_tool(tool) for tool in body.tools]
    elif body.tool_choice == "auto":  # the default, of none
        del chat["tool_choice"]
    if body.text is not None and body.text.format is not None:
        chat["response_format"] = _response_format(body.text.format)
    if body.reasoning is not None and body.reasoning.effort is not None:
        chat["reasoning_effort"] = body.reasoning.effort
    if LOGPROBS in (body.include or ()):
        chat |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    return chat


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    if tool.get("type") != "function":
        return tool  # will be refused
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _response_format(given: Mapping[str, Any]) -> Mapping[str, Any]:
    if given.get("type") != "json_schema":
        return given
    named = {key: value for key, value in given.items() if key != "type"}
    return {"type": "json_schema", "json_schema": named}


def in_own_words(error: RequestError) -> RequestError:
    """What was said of a chat's field, said of the field here that it came from."""
    if error.param is None:
        return error
    param = error.param
    for pattern, own in _WORDS:
        param = pattern.sub(own, param)
    message = str(error)
    if message.startswith(error.param):
        message = param + message.removeprefix(error.param)
    return type(error)(message, param=param)


_WORDS = tuple(
    (re.compile(pattern), own)
    for pattern, own in (
        (r"^messages.*", "input"),
        (r"^max_(completion_)?tokens\b", "max_output_tokens"),
        (r"^response_format\b(\.json_schema\b)?", "text.format"),
        (r"^(tools\[\d+\])\.function\b", r"\1"),
        (r"^tool_choice\.(function|allowed_tools)\b", "tool_choice"),
        (r"^reasoning_effort\b", "reasoning.effort"),
    )
)


def _messages(body: ResponsesRequest) -> list[Message]:
    messages: list[Message] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    called: set[str] = set()
    for place, item in enumerate(body.input):
        where = f"input[{place}]"
        match item.type or "message":
            case "message":
                _say(item, where, messages)
            case "reasoning":
                if thought := _text(item.content, f"{where}.content", _THOUGHTS):
                    messages.append({"role": "assistant", "reasoning_content": thought})
            case "function_call":
                called.add(_call(item, where, messages))
            case "function_call_output":
                messages.append(_result(item, where, called))
            case other:
                raise InvalidParameter(
                    f"{where}.type: items of type {other!r} are not offered.", param=f"{where}.type"
                )
    for message in messages:
        if not message.get("tool_calls"):
            message.setdefault("content", "")
    return messages


def _say(item: InputItem, where: str, messages: list[Message]) -> None:
    """A message; the model's own goes on from its thinking."""
    role = _present(item.role, f"{where}.role")
    if role not in _ROLES:
        raise InvalidParameter(f"{where}.role: {role!r} is no role.", param=f"{where}.role")
    if item.content is None:
        raise InvalidParameter(f"{where}.content is required.", param=f"{where}.content")
    content = _text(item.content, f"{where}.content", _TEXTS)
    turn = _open_turn(messages) if role == "assistant" else None
    if turn is None or "content" in turn or "tool_calls" in turn:
        messages.append({"role": role, "content": content})
    else:
        turn["content"] = content


def _call(item: InputItem, where: str, messages: list[Message]) -> str:
    """A call joins what the model said or called just before. Gives its id."""
    call_id = _present(item.call_id, f"{where}.call_id")
    function = {
        "name": _present(item.name, f"{where}.name"),
        "arguments": _present(item.arguments, f"{where}.arguments"),
    }
    turn = _open_turn(messages)
    if turn is None:
        messages.append(turn := {"role": "assistant"})
    call = {"id": call_id, "type": "function", "function": function}
    turn.setdefault("tool_calls", []).append(call)
    return call_id


def _result(item: InputItem, where: str, called: set[str]) -> Message:
    call_id = _present(item.call_id, f"{where}.call_id")
    if call_id not in called:
        raise InvalidParameter(
            f"{where}.call_id: no function_call before it has the call_id {call_id!r}.",
            param=f"{where}.call_id",
        )
    if item.output is None:
        raise InvalidParameter(f"{where}.output is required.", param=f"{where}.output")
    content = _text(item.output, f"{where}.output", _TEXTS)
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def _open_turn(messages: Sequence[Message]) -> Message | None:
    """The last message, if it is the model's."""
    return messages[-1] if messages and messages[-1]["role"] == "assistant" else None


def _text(content: str | list[InputPart] | None, path: str, kinds: Sequence[str]) -> str:
    """All parts as one text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for number, part in enumerate(content):
        spot = f"{path}[{number}]"
        if part.type == "refusal":
            texts.append(_present(part.refusal, f"{spot}.refusal"))
        elif part.type in kinds:
            texts.append(_present(part.text, f"{spot}.text"))
        else:
            raise InvalidParameter(
                f"{spot}: {part.type!r} parts are not offered; the model reads text only.",
                param=spot,
            )
    return "".join(texts)


def _present(value: str | None, path: str) -> str:
    if value is None:
        raise InvalidParameter(f"{path} is required.", param=path)
    return value
