"""API contract, section 2: the parameters that both generation endpoints share.

The last value inside each limit is taken, the first one outside is refused, and what is taken
arrives at the engine, whichever endpoint it came through.
"""

from __future__ import annotations

from typing import Any

import pytest

from octavo.engine.params import Request
from octavo.engine.step import Delta, TokenLogprobs

from ..fakes.engine import told
from .serving import Served, encoded, model, saying, serve
from .test_api_completions import BAD

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BOTH = pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
USER = {"role": "user", "content": "hello"}


def start(path: str) -> dict[str, Any]:
    return {"prompt": "once"} if path == COMPLETIONS else {"messages": [USER]}


async def asked(server: Served, path: str, **fields: Any) -> Any:
    """What the engine was asked for."""
    response = await server.post(path, {**start(path), **fields})
    assert response.status_code == 200, response.text
    return server.engine.requests[-1]


TAKEN = [
    ("temperature", [0, 2, 1e-9, 0.01], "temperature"),
    ("top_p", [0, 1, 1e-9], "top_p"),
    ("n", [1, 128], "n"),
    ("seed", [0, -1, 2**63 - 1, -(2**63)], "seed"),
    ("presence_penalty", [-2, 2], "presence_penalty"),
    ("frequency_penalty", [-2, 2], "frequency_penalty"),
    ("top_k", [0, -1, 1, 10_000], "top_k"),
    ("min_p", [0, 1], "min_p"),
    ("repetition_penalty", [1e-3, 1.0, 50], "repetition_penalty"),
    ("max_tokens", [0, 1, 400], "max_tokens"),
    ("min_tokens", [0, 1, 16], "min_tokens"),
    ("ignore_eos", [False, True], "ignore_eos"),
    ("include_stop_str_in_output", [False, True], "include_stop_str_in_output"),
    ("skip_special_tokens", [True, False], "skip_special_tokens"),
    ("prompt_logprobs", [0, 20], "prompt_logprobs"),
    ("best_of", [1, 20], "n"),
]


@BOTH
@pytest.mark.parametrize(("field", "values", "name"), TAKEN, ids=[f for f, *_ in TAKEN])
async def test_s2_the_last_value_within_each_limit_is_taken(
    path: str, field: str, values: list[Any], name: str
) -> None:
    server = serve(saying("a"))
    for value in values:
        request = await asked(server, path, **{field: value})
        assert getattr(request.sampling, name) == value


@BOTH
async def test_s2_spaces_between_special_tokens_is_taken_and_puts_none(path: str) -> None:
    """As in transformers: test_tokenizer.py."""
    ids = [*encoded("a"), 2, 3, *encoded(" b")]
    server = serve(lambda request: told(ids))
    answers = []
    for spaces in (None, True, False):
        fields = {"skip_special_tokens": False, "spaces_between_special_tokens": spaces}
        response = await server.post(path, {**start(path), **fields})
        (choice,) = response.json()["choices"]
        answers.append(choice["text"] if "text" in choice else choice["message"]["content"])
    assert answers == ["a<|im_start|><|im_end|> b"] * 3
    wrong = {**start(path), "spaces_between_special_tokens": "yes"}
    assert (await server.refusal(path, wrong))["param"] == "spaces_between_special_tokens"


@BOTH
async def test_s2_lists_are_taken_up_to_their_limits(path: str) -> None:
    server = serve(saying("a"))
    last = model().config.vocab_size - 1
    request = await asked(
        server,
        path,
        stop=[f"word {i}" for i in range(64)],
        logit_bias={str(i): 100 - (i % 201) for i in range(305)} | {str(last): -100},
        stop_token_ids=[0, last],
        allowed_token_ids=[0, last],
        bad_words=["fox", "a wolf"],
    )
    sampling = request.sampling
    assert len(sampling.stop) == 64
    assert len(sampling.logit_bias) == 306
    assert {min(sampling.logit_bias.values()), max(sampling.logit_bias.values())} == {-100, 100}
    assert sampling.logit_bias[last] == -100
    assert sampling.stop_token_ids == sampling.allowed_token_ids == (0, last)
    assert sampling.bad_words_ids[:2] == (tuple(encoded("fox")), tuple(encoded(" fox")))
    assert sampling.bad_words_ids[2:] == (tuple(encoded("a wolf")), tuple(encoded(" a wolf")))


@BOTH
async def test_s2_priority_and_cache_salt_reach_the_engine(path: str) -> None:
    server = serve(saying("a"))
    for priority, salt in ((-(2**31), "s"), (2**31 - 1, "x" * 128)):
        request = await asked(server, path, priority=priority, cache_salt=salt)
        assert (request.priority, request.cache_salt) == (priority, salt)
    request = await asked(server, path)
    assert (request.priority, request.cache_salt) == (0, "")


@BOTH
async def test_s2_a_request_id_appears_in_every_id(path: str) -> None:
    server = serve(saying("a"))
    for name in ("mine-7", "x" * 128):
        response = await server.post(path, {**start(path), "request_id": name})
        assert response.json()["id"].endswith(f"-{name}")
        events = await server.events(path, request_id=name)
        assert all(event["id"].endswith(f"-{name}") for event in events)


@BOTH
async def test_s2_without_a_request_id_it_is_that_of_the_header(path: str) -> None:
    response = await serve().post(path, start(path), headers={"x-request-id": "from-a-header"})
    assert response.json()["id"].endswith("-from-a-header")


@BOTH
@pytest.mark.parametrize("name", [7, True, [], {"id": "tiny"}])
async def test_s2_a_model_that_is_no_string_is_400(path: str, name: Any) -> None:
    error = await serve().refusal(path, {**start(path), "model": name})
    assert error["param"] == "model"


@BOTH
async def test_s2_the_answer_repeats_the_model_as_it_was_asked_for(path: str) -> None:
    server = serve()
    for name in ("tiny", "org/alias"):
        response = await server.post(path, {**start(path), "model": name})
        assert response.json()["model"] == name
        assert {e["model"] for e in await server.events(path, model=name)} == {name}
    await server.refusal(path, {**start(path), "model": "Tiny"}, 404)


NOT_IN_CHAT = {"logprobs", "echo", "suffix"}  # they mean something else there, or nothing
SHARED = [(f, v) for f, values in BAD if f not in NOT_IN_CHAT for v in values]


async def test_s3_a_bad_shared_value_is_400_in_chat_too() -> None:
    server = serve()
    for field, value in SHARED:
        fields = {field: value}
        if (field, value) == ("min_tokens", 17):
            fields["max_tokens"] = 16  # chats have no such default
        error = await server.refusal(CHAT, {"messages": [USER], **fields})
        assert error["type"] == "invalid_request_error"
        assert error["param"].startswith(field), (field, value)
    assert server.engine.requests == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": False, "stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"n": 1, "best_of": 2, "stream": True}, "best_of"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ],
)
async def test_s3_values_that_do_not_go_together_are_400_in_chat_too(
    body: dict[str, Any], param: str
) -> None:
    assert (await serve().refusal(CHAT, {"messages": [USER], **body}))["param"] == param


async def test_s2_logprobs_of_20_are_taken_and_21_are_not() -> None:
    server = serve(saying("a"))
    assert (await asked(server, COMPLETIONS, logprobs=20)).sampling.logprobs == 20
    assert (await server.refusal(COMPLETIONS, {"prompt": "a", "logprobs": 21}))["param"]
    fields = {"logprobs": True, "top_logprobs": 20}
    assert (await asked(server, CHAT, **fields)).sampling.logprobs == 20


async def test_s3_add_special_tokens_puts_one_bos_before_a_conversation() -> None:
    with_bos = model(template="<s>{{ messages[0].content }}")
    plain = model(template="{{ messages[0].content }}")
    hello = encoded("hello")
    for served, wanted, expected in (
        (plain, True, [0, *hello]),
        (plain, False, hello),
        (plain, None, hello),
        (with_bos, True, [0, *hello]),  # the template has one: there are never two
        (with_bos, None, [0, *hello]),
    ):
        request = await asked(serve(served=served), CHAT, add_special_tokens=wanted)
        assert list(request.prompt_token_ids) == expected


async def test_s3_truncation_keeps_the_last_tokens_of_a_conversation() -> None:
    server = serve(saying("a"))
    whole = (await asked(server, CHAT)).prompt_token_ids
    assert (await asked(server, CHAT, truncate_prompt_tokens=3)).prompt_token_ids == whole[-3:]
    assert (await asked(server, CHAT, truncate_prompt_tokens=10_000)).prompt_token_ids == whole


async def test_s2_an_echo_shows_what_truncation_left() -> None:
    server = serve(saying("!"))
    answer = await server.complete(prompt="once upon", truncate_prompt_tokens=1, echo=True)
    left = server.engine.requests[0].prompt_token_ids
    assert left == tuple(encoded("once upon")[-1:])
    assert answer["choices"][0]["text"] == model().tokenizer.decode(left) + "!"


async def test_s2_best_of_ranks_by_the_mean_not_by_the_sum() -> None:
    def flat(logprob: float) -> Any:
        def scored(place: int, token: int) -> TokenLogprobs:
            return TokenLogprobs(
                token_id=token, logprob=logprob, rank=1, top_ids=(), top_logprobs=()
            )

        return scored

    def script(request: Request) -> list[Delta]:
        # The longer text has the lower sum (-4.5 against -2) and the higher mean.
        long = told(encoded("x" * 9), index=0, logprobs=flat(-0.5))
        return [*told(encoded("y"), index=1, logprobs=flat(-2.0)), *long]

    server = serve(script)
    assert (await server.complete(best_of=2))["choices"][0]["text"] == "x" * 9
    assert (await server.chat(best_of=2))["choices"][0]["message"]["content"] == "x" * 9
