"""What requests look like: field names, types and limits, as /openapi.json shows them.

In a request, None stands for "not given" and for `null` alike; unknown fields are ignored, because
real clients add their own. A field that octavo does not offer yet is listed all the same, so that
`params.refuse_unoffered` can say so instead of dropping it. What says the form of an answer, and
tools, are read in full by `structured` and `server.text.tools`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Whole = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Prompt = str | list[str | TokenId | list[TokenId]]


class StreamOptions(Struct, kw_only=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class TimedRequest(Struct, kw_only=True):
    """What every request takes that the model is asked for."""

    timeout: Seconds | None = None  # from its arrival to the end of its answer


class GenerationRequest(TimedRequest, kw_only=True):
    """What both generation endpoints take."""

    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Whole | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    stop: str | list[str] | None = None
    seed: Int64 | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    # Beyond OpenAI, as vLLM names them.
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    min_tokens: Whole | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    # Taken, and of no effect: only tokenizers without a tokenizer.json, which octavo does not read,
    # put spaces between tokens. transformers and vLLM ignore it for all the others.
    spaces_between_special_tokens: bool | None = None
    allowed_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: Whole | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Positive | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    request_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None

    # The form of the answer, in the dialects of several servers: one of these.
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    grammar: str | None = None
    json_schema: Any = None


class CompletionRequest(GenerationRequest, kw_only=True):
    """POST /v1/completions."""

    prompt: Prompt
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None


class ContentPart(Struct, kw_only=True):
    """A piece of a message; so far only text."""

    type: str
    text: str | None = None


class Message(Struct, kw_only=True):
    """One message. Further fields are handed to the chat template as they are."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ChatRequest(GenerationRequest, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    modalities: list[str] | None = None

    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    # Not offered.
    functions: Any = None
    function_call: Any = None
    audio: Any = None


class TokenizeRequest(Struct, kw_only=True):
    """POST /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """POST /detokenize."""

    tokens: list[TokenId]
    model: str | None = None


def components(*schemas: type[Struct]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """References to `schemas`, and the OpenAPI components they need."""
    references, definitions = msgspec.json.schema_components(
        schemas, ref_template="#/components/schemas/{name}"
    )
    return list(references), dict(definitions)
