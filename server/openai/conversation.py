"""Conversations: what each role may send, and how the chat template makes a prompt of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from octavo.engine.errors import ConfigError, InvalidParameter

from ..text.template import ChatTemplate, refusal
from ..text.template_sandbox import TemplateFault
from .params import context_of
from .prompts import MAX_CHARACTERS, check_length
from .schema import ChatRequest, Message, TokenizeRequest

if TYPE_CHECKING:
    from ..models import ServedModel
    from .desk import Desk

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_RESERVED = frozenset(
    ("self", "messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
)


def check_messages(messages: Sequence[Message]) -> None:
    """Raises InvalidParameter: a message is not one that its role may send."""
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if message.role not in _ROLES:
            raise InvalidParameter(
                f"{where}.role: {message.role!r} is no role.", param=f"{where}.role"
            )
        called = message.role == "assistant" and bool(message.tool_calls)
        if message.content is None and not called:
            raise InvalidParameter(f"{where}.content is required.", param=f"{where}.content")
        if message.role == "tool" and message.tool_call_id is None:
            raise InvalidParameter(
                f"{where}.tool_call_id is required.", param=f"{where}.tool_call_id"
            )
        for number, part in enumerate(message.content if isinstance(message.content, list) else ()):
            spot = f"{where}.content[{number}]"
            if part.type != "text":
                raise InvalidParameter(
                    f"{spot}: {part.type!r} parts are not offered; the model reads text only.",
                    param=spot,
                )
            if part.text is None:
                raise InvalidParameter(f"{spot}.text is required.", param=f"{spot}.text")


def message_text(message: Message) -> str:
    """A message's content as one text."""
    if isinstance(message.content, list):
        return "".join(part.text or "" for part in message.content)
    return message.content or ""


def template_for(model: ServedModel, given: str | None, *, trusted: bool) -> ChatTemplate:
    """The model's chat template, or the one that a request brings, where these are `trusted`.

    Raises:
        InvalidParameter: there is none, or the request's own is not taken or not valid.
    """
    if given is not None:
        if not trusted:
            raise InvalidParameter(
                "chat_template: this server does not take templates from requests.",
                param="chat_template",
            )
        try:
            return ChatTemplate(given, model.tokenizer)
        except ConfigError as error:
            raise InvalidParameter(str(error), param="chat_template") from None
    if model.template is None:
        raise InvalidParameter(
            f"{model.name} has no chat template; use /v1/completions.", param="messages"
        )
    return model.template


def template_options(
    body: ChatRequest | TokenizeRequest,
    *,
    effort: str | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Keyword arguments for the template. Raises InvalidParameter."""
    continued = bool(body.continue_final_message)
    if continued and body.add_generation_prompt:
        raise InvalidParameter(
            "continue_final_message and add_generation_prompt exclude each other.",
            param="continue_final_message",
        )
    given = body.chat_template_kwargs or {}
    if taken := _RESERVED & given.keys():
        raise InvalidParameter(
            f"chat_template_kwargs: {min(taken)} is not the template's to be given.",
            param="chat_template_kwargs",
        )
    generated = body.add_generation_prompt
    return {
        **({} if effort is None else {"reasoning_effort": effort}),
        **given,
        "add_generation_prompt": not continued if generated is None else generated,
        "continue_final_message": continued,
        "documents": documents,
        "tools": tools,
    }


async def encode_messages(
    desk: Desk,
    body: ChatRequest | TokenizeRequest,
    raw: Sequence[Mapping[str, Any]],
    *,
    model: ServedModel,
    template: ChatTemplate,
    size: int,
    options: Mapping[str, Any],
    longest: int | None = None,
) -> list[int]:
    """Token ids of a conversation; of a long one without keeping the event loop.

    Args:
        raw: the messages as they came, with the fields that only templates know.
        size: bytes of the body.
        options: for the template. Names in it are a client's: they never meet parameters of ours.
        longest: so many tokens are too many in any case.

    Raises:
        InvalidParameter: a message is wrong, or the template refuses it.
        ContextLengthExceeded: it is too long, and that was found out in no time.
    """
    check_messages(body.messages or [])
    given = [
        {name: value for name, value in message.items() if value is not None} for message in raw
    ]
    rendering = await desk.threads.run(lambda: template.prepare(given, **options), size=size)
    try:
        text = await desk.renderer_of(body.chat_template).render(
            rendering.source, rendering.variables, longest=rendering.longest
        )
    except TemplateFault as fault:
        raise refusal(fault) from None

    def ids() -> list[int]:
        if longest is not None or len(text) > MAX_CHARACTERS:
            shown = template.text_of(rendering, text)
            words = shown if rendering.mark is None else shown.replace(rendering.mark, "")
            check_length(words, model, longest or context_of(model), "messages")
        return template.ids_of(rendering, text)

    return await desk.threads.run(ids, size=len(text))
