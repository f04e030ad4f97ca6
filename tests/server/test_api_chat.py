"""API contract, section 3 (POST /v1/chat/completions)."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.engine.params import FinishReason

from .serving import encoded, model, saying, serve

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "hello"}


def prompt_of(server: Any, place: int = -1) -> str:
    ids = server.engine.requests[place].prompt_token_ids
    return model().tokenizer.decode(ids, skip_special_tokens=False)


async def test_s3_the_answer_has_all_its_keys() -> None:
    answer = await serve(saying("there was")).chat()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert isinstance(answer["created"], int)
    assert answer["model"] == "tiny"
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["message"] == {"role": "assistant", "content": "there was", "refusal": None}
    assert choice["logprobs"] is None
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(encoded("there was")) + 1


async def test_s3_the_template_makes_the_prompt() -> None:
    server = serve()
    await server.chat(messages=[{"role": "system", "content": "be kind"}, USER])
    assert prompt_of(server) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_s3_parts_are_joined_exactly_as_the_plain_string() -> None:
    server = serve()
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    await server.chat(messages=[{"role": "user", "content": parts}])
    await server.chat(messages=[USER])
    assert prompt_of(server, 0) == prompt_of(server, 1)


async def test_s3_all_roles_are_taken_and_developer_is_system_to_the_template() -> None:
    server = serve()
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    await server.chat(
        messages=[
            {"role": "developer", "content": "be kind"},
            {**USER, "name": "Ann"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "5"}]},
            {"role": "assistant", "content": "five", "tool_calls": None, "refusal": None},
            USER,
        ]
    )
    assert prompt_of(server).startswith("<|im_start|>system\nbe kind")


async def test_s3_control_tokens_of_a_user_stay_text() -> None:
    server = serve()
    await server.chat(messages=[{"role": "user", "content": "<|im_end|></s>"}])
    ids = list(server.engine.requests[0].prompt_token_ids)
    special = model().tokenizer.token_id("<|im_end|>")
    assert ids.count(special) == 1
    assert model().tokenizer.token_id("</s>") not in ids


async def test_s3_max_tokens_default_to_the_contexts_end() -> None:
    server = serve(saying("x" * 300))
    (choice,) = (await server.chat())["choices"]
    assert choice["message"]["content"] == "x" * 300
    assert server.engine.requests[0].sampling.max_tokens is None


async def test_s3_max_completion_tokens_wins_over_max_tokens() -> None:
    server = serve(saying("x" * 50))
    for fields, length in (
        ({"max_completion_tokens": 3, "max_tokens": 9}, 3),
        ({"max_completion_tokens": 3}, 3),
        ({"max_tokens": 9}, 9),
        ({"max_completion_tokens": None, "max_tokens": 9}, 9),
    ):
        (choice,) = (await server.chat(**fields))["choices"]
        assert choice["message"]["content"] == "x" * length
        assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (None, "messages"),
        ("hello", "messages"),
        ({"role": "user"}, "messages"),
        ([{"content": "a"}], "messages[0].role"),
        ([USER, {"role": "wizard", "content": "a"}], "messages[1].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "assistant"}], "messages[0].content"),
        ([{"role": "assistant", "tool_calls": []}], "messages[0].content"),
        ([{"role": "user", "content": [{"text": "a"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "sound", "text": "a"}]}], "messages[0].content[0]"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0]",
        ),
        (
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}],
            "messages[0].content[0]",
        ),
        ([{"role": "tool", "content": "5"}], "messages[0].tool_call_id"),
        ([USER, 7], "messages[1]"),
    ],
)
async def test_s3_a_bad_message_is_400_and_named(messages: Any, param: str) -> None:
    server = serve()
    error = await server.refusal(PATH, {"messages": messages})
    assert error["param"] == param
    assert server.engine.requests == []


async def test_s3_missing_messages_are_400() -> None:
    assert (await serve().refusal(PATH, {}))["param"] == "messages"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"tools": []}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"stop": [1]}, "stop"),
        ({"max_tokens": 600}, "messages"),
    ],
)
async def test_s3_a_bad_value_is_400_and_names_its_field(
    fields: dict[str, Any], param: str
) -> None:
    error = await serve().refusal(PATH, {"messages": [USER], **fields})
    assert error["param"].startswith(param)


async def test_s3_accepted_and_without_effect() -> None:
    server = serve()
    await server.chat(
        store=True,
        metadata={"a": "b"},
        service_tier="auto",
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        prediction={"type": "content", "content": "x"},
        modalities=["text"],
        verbosity="low",
        audio=None,
        functions=None,
        tools=None,
        tool_choice=None,
        parallel_tool_calls=True,
        response_format={"type": "text"},
    )
    await server.chat()
    first, second = (request.sampling for request in server.engine.requests)
    assert first == second
    assert prompt_of(server, 0) == prompt_of(server, 1)


async def test_s3_reasoning_effort_and_kwargs_reach_the_template() -> None:
    template = "{{ reasoning_effort }}/{{ enable_thinking }}/{{ documents[0].text }}"
    server = serve(served=model(template=template))
    await server.chat(
        reasoning_effort="low",
        chat_template_kwargs={"enable_thinking": False},
        documents=[{"text": "doc"}],
    )
    assert prompt_of(server) == "low/False/doc"


async def test_s3_continue_final_message_leaves_the_last_turn_open() -> None:
    server = serve(saying(" upon"))
    messages = [USER, {"role": "assistant", "content": "once"}]
    answer = await server.chat(messages=messages, continue_final_message=True, echo=True)
    assert prompt_of(server).endswith("<|im_start|>assistant\nonce")
    assert answer["choices"][0]["message"]["content"] == "once upon"
    events = await server.events(PATH, messages=messages, continue_final_message=True, echo=True)
    assert events[0]["choices"][0]["delta"]["content"] == "once"


async def test_s3_a_requests_own_template_where_the_operator_allows_it() -> None:
    server = serve(trust_request_chat_template=True)
    await server.chat(chat_template="<{{ messages[0].content }}>")
    assert prompt_of(server) == "<hello>"
    for broken in ("{{", "{{ 1/0 }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}"):
        error = await server.refusal(PATH, {"messages": [USER], "chat_template": broken})
        assert error["type"] == "invalid_request_error"


async def test_s3_a_model_without_template_refuses_chat_with_the_way_out() -> None:
    error = await serve(served=model(template=None)).refusal(PATH, {"messages": [USER]})
    assert "/v1/completions" in error["message"]


async def test_s3_what_the_template_refuses_is_400() -> None:
    served = model(template="{{ raise_exception('only one turn') }}")
    error = await serve(served=served).refusal(PATH, {"messages": [USER]})
    assert "only one turn" in error["message"]


async def test_s3_n_choices_and_token_ids() -> None:
    server = serve(saying("a", "bc"))
    answer = await server.chat(n=2, return_token_ids=True)
    assert [c["message"]["content"] for c in answer["choices"]] == ["a", "bc"]
    assert [c["token_ids"] for c in answer["choices"]] == [[*encoded("a"), 1], [*encoded("bc"), 1]]
    assert answer["prompt_token_ids"] == list(server.engine.requests[0].prompt_token_ids)
    events = await server.events(PATH, n=2, return_token_ids=True)
    assert [e.get("prompt_token_ids") for e in events] == [answer["prompt_token_ids"]] + [None] * (
        len(events) - 1
    )


async def test_s3_best_of_and_prompt_logprobs() -> None:
    server = serve(saying("a long one", "x", reason=FinishReason.STOP))
    answer = await server.chat(best_of=2, prompt_logprobs=0)
    assert [c["message"]["content"] for c in answer["choices"]] == ["x"]
    assert answer["prompt_logprobs"][0] is None
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]


async def test_s3_the_returned_message_is_acceptable_as_input() -> None:
    server = serve(saying("there"))
    message = (await server.chat())["choices"][0]["message"]
    await server.chat(messages=[USER, message, USER])


async def test_s3_large_conversations_are_templated_off_the_loop() -> None:
    server = serve()
    error = await server.refusal(
        PATH, {"messages": [{"role": "user", "content": "once upon a time " * 5000}]}
    )
    assert error["code"] == "context_length_exceeded"
