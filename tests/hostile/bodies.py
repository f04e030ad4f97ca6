"""Valid requests of every POST endpoint, rich in fields: what attacks are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0}, "b": {"enum": ["x", "y", None]}},
    "required": ["a"],
    "additionalProperties": False,
}
_TOOL = {
    "type": "function",
    "function": {"name": "look_up", "description": "looks", "parameters": _SCHEMA},
}
_SAMPLING = {
    "max_tokens": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.05,
    "n": 2,
    "seed": 7,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 1.5, "7": -100},
    "stop": ["zzz", "yyy"],
    "stop_token_ids": [9],
    "bad_words": ["bad"],
    "min_tokens": 1,
    "cache_salt": "salt",
    "priority": 1,
    "timeout": 30,
    "user": "somebody",
}
_TALK = [
    {"role": "system", "content": "short"},
    {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "u"},
]

BODIES: Mapping[str, Sequence[dict[str, Any]]] = MappingProxyType(
    {
        "/v1/completions": (
            {"prompt": "once upon", "model": None, "logprobs": 2, **_SAMPLING},
            {"prompt": ["a", "b"], "max_tokens": 2, "echo": True, "logprobs": 0},
            {"prompt": [[5, 6, 7], [8]], "max_tokens": 1, "prompt_logprobs": 1},
            {"prompt": [5, 6], "max_tokens": 2, "stream": True,
             "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
            {"prompt": "a", "max_tokens": 3, "best_of": 3, "n": 1, "return_token_ids": True},
            {"prompt": "a", "max_tokens": 2, "use_beam_search": True, "length_penalty": 1.2},
            {"prompt": "a", "max_tokens": 4, "structured_outputs": {"choice": ["red", "green"]}},
        ),
        "/v1/chat/completions": (
            {"messages": _TALK, "logprobs": True, "top_logprobs": 2, **_SAMPLING},
            {"messages": _TALK, "max_completion_tokens": 3, "stream": True},
            {"messages": _TALK, "max_tokens": 6, "tools": [_TOOL], "tool_choice": "required"},
            {"messages": [*_TALK, {"role": "assistant", "tool_calls": [
                {"id": "c", "type": "function",
                 "function": {"name": "look_up", "arguments": "{\"a\": 1}"}}]},
                {"role": "tool", "tool_call_id": "c", "content": "1"}],
             "tools": [_TOOL], "max_tokens": 3, "parallel_tool_calls": False},
            {"messages": _TALK, "max_tokens": 5, "response_format": {
                "type": "json_schema", "json_schema": {"name": "n", "schema": _SCHEMA}}},
            {"messages": _TALK, "max_tokens": 2, "chat_template_kwargs": {"a": [1, {"b": None}]},
             "documents": [{"title": "t", "text": "x"}], "reasoning_effort": "low"},
        ),
        "/v1/responses": (
            {"input": "hello", "max_output_tokens": 4, "temperature": 0, "instructions": "be"},
            {"input": [{"type": "message", "role": "user",
                        "content": [{"type": "input_text", "text": "hello"}]}],
             "max_output_tokens": 3, "stream": True, "metadata": {"k": "v"}},
            {"input": "x", "max_output_tokens": 5, "text": {"format": {
                "type": "json_schema", "name": "n", "schema": _SCHEMA}}},
        ),
        "/v1/embeddings": (
            {"input": ["one", "two"], "encoding_format": "base64", "dimensions": 4},
            {"input": [[5, 6], [7]], "pooling": "last", "normalize": False},
        ),
        "/tokenize": (
            {"prompt": "once", "add_special_tokens": False, "return_token_strs": True},
            {"messages": _TALK, "add_generation_prompt": True, "tools": [_TOOL]},
        ),
        "/detokenize": ({"tokens": [5, 6, 7]},),
    }
)  # fmt: skip
