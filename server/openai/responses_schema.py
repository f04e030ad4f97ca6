"""What /v1/responses takes and gives, as /openapi.json shows it (API contract, section 8)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from .answers import ChatTokenLogprob
from .schema import Int64, Penalty, Positive, Share, TimedRequest, TokenId, Whole

Status = Literal["in_progress", "completed", "incomplete", "failed"]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]


class InputPart(Struct, kw_only=True):
    """A piece of an item: `input_text`, `output_text`, `reasoning_text` or `refusal`."""

    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(Struct, kw_only=True):
    """What was said before: an item of `type` message (where it has none, too), function_call,
    function_call_output or reasoning. Those of an answer may be handed back as they are."""

    type: str | None = None
    role: str | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class TextOptions(Struct, kw_only=True):
    """The form of the text. `format`: of type text, json_object or json_schema, and what
    `response_format` takes in chats."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ReasoningOptions(Struct, kw_only=True):
    """`effort` is handed to the chat template; there are no summaries."""

    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(TimedRequest, kw_only=True):
    """POST /v1/responses. None stands for "not given"; unknown fields are ignored."""

    input: str | Annotated[list[InputItem], Meta(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    stream: bool | None = None
    metadata: Metadata | None = None

    # Without effect here.
    store: bool | None = None  # nothing is stored
    truncation: Literal["auto", "disabled"] | None = None  # nothing is cut: too long is refused
    max_tool_calls: Positive | None = None  # of tools that run in the server: there are none
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    # Not offered: they need a memory of former answers.
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    prompt: Any = None

    # Beyond OpenAI, as in chats.
    seed: Int64 | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    min_tokens: Whole | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    request_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class OutputText(Struct, kw_only=True, tag_field="type", tag="output_text"):
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[ChatTokenLogprob] = []


class ReasoningText(Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    text: str = ""


class MessageItem(Struct, kw_only=True, tag_field="type", tag="message"):
    id: str
    role: Literal["assistant"] = "assistant"
    status: Status = "in_progress"
    content: list[OutputText] = []


class ReasoningItem(Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """The model's thinking, as it stands."""

    id: str
    status: Status = "in_progress"
    summary: list[Any] = []
    content: list[ReasoningText] = []


class FunctionCallItem(Struct, kw_only=True, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str = ""  # JSON
    status: Status = "in_progress"


OutputItem = MessageItem | ReasoningItem | FunctionCallItem


class IncompleteDetails(Struct, kw_only=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseFailure(Struct, kw_only=True):
    code: Literal["server_error"] = "server_error"
    message: str


class InputTokensDetails(Struct, kw_only=True):
    """`cache_write_tokens`: those that writing costs extra; there are none."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct, kw_only=True):
    reasoning_tokens: int = 0


class ResponseUsage(Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ModelResponse(Struct, kw_only=True):
    """The answer of /v1/responses, and what the events that begin and end a stream show of it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status = "in_progress"
    model: str
    output: list[OutputItem]
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    usage: ResponseUsage | None = None

    # The request's own.
    background: bool = False
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: Metadata
    parallel_tool_calls: bool
    previous_response_id: None = None
    prompt_cache_key: str | None
    reasoning: ReasoningOptions
    safety_identifier: str | None
    service_tier: str = "default"
    store: bool = False
    temperature: float
    text: TextOptions
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    user: str | None
