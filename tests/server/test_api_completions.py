"""API contract, section 2 (POST /v1/completions), with sections 5 (counting) and 6c (echo).

Test names carry the section, so that a line's test can be found.
"""

from __future__ import annotations

from typing import Any

import pytest

from octavo.engine.params import FinishReason

from .serving import encoded, model, saying, serve

PATH = "/v1/completions"
SAID = "there was a fox."


async def test_s2_the_answer_has_all_its_keys() -> None:
    answer = await serve(saying(SAID)).complete(max_tokens=100)
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert isinstance(answer["created"], int)
    assert answer["model"] == "tiny"
    assert answer["choices"] == [
        {
            "index": 0,
            "text": SAID,
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert set(answer["usage"]) >= {"prompt_tokens", "completion_tokens", "total_tokens"}


async def test_s2_null_means_the_default_and_unknown_fields_are_ignored() -> None:
    fields = (
        "model max_tokens temperature top_p n best_of stream stream_options stop logprobs echo "
        "seed presence_penalty frequency_penalty logit_bias suffix user top_k min_p min_tokens "
        "repetition_penalty ignore_eos stop_token_ids allowed_token_ids bad_words "
        "prompt_logprobs response_format structured_outputs request_id cache_salt priority"
    ).split()
    server = serve(saying(SAID))
    answer = await server.complete(**dict.fromkeys(fields), chat_id="x", features={"a": [1]})
    plain = await server.complete()
    assert answer["choices"] == plain["choices"]
    first, second = (request.sampling for request in server.engine.requests)
    assert first == second


async def test_s2_model_absent_is_the_default_and_an_alias_is_taken() -> None:
    server = serve()
    assert (await server.complete())["model"] == "tiny"
    assert (await server.complete(model="org/alias"))["model"] == "org/alias"


async def test_s2_an_unknown_model_is_404_model_not_found() -> None:
    error = await serve().refusal(PATH, {"prompt": "a", "model": "gpt-9"}, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    "prompt",
    [[], [[]], ["a", 1], [1, "a"], [[1], "a"], [[1, "a"]], [-1], [[-1]], 7, {"a": 1}, True, [True],
     [[10**6]], [340000], None, [1.5], ["a", []], [None]],
)  # fmt: skip
async def test_s2_a_bad_prompt_is_400(prompt: Any) -> None:
    error = await serve().refusal(PATH, {"prompt": prompt})
    assert error["param"].startswith("prompt")


async def test_s2_a_missing_prompt_is_400() -> None:
    assert (await serve().refusal(PATH, {}))["param"] == "prompt"


async def test_s2_ids_are_used_as_they_are_and_texts_get_a_bos() -> None:
    server = serve()
    ids = encoded("once upon")
    await server.complete(prompt=ids)
    await server.complete(prompt="once upon")
    await server.complete(prompt="once upon", add_special_tokens=False)
    sent = [list(request.prompt_token_ids) for request in server.engine.requests]
    assert sent == [ids, [0, *ids], ids]


@pytest.mark.parametrize("prompt", [["one", "two", "three"], [[20], [21], [22]]])
async def test_s2_s5_one_group_of_choices_per_prompt_in_order(prompt: Any) -> None:
    answer = await serve(saying("a", "b")).complete(prompt=prompt, n=2, max_tokens=10)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert [choice["text"] for choice in answer["choices"]] == ["a", "b"] * 3


async def test_s5_usage_counts_each_prompt_once_and_every_choice() -> None:
    server = serve(saying("abc", reason=FinishReason.LENGTH))
    answer = await server.complete(prompt=[[20] * 7, [21] * 5], n=3, max_tokens=3)
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 12
    assert usage["completion_tokens"] == 2 * 3 * 3
    assert usage["total_tokens"] == 30
    assert usage["prompt_tokens_details"] == {"cached_tokens": 8}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}


async def test_s5_a_streams_usage_equals_the_plain_one() -> None:
    server = serve(saying("abc", "abcd"))
    body = {"prompt": ["one", "two"], "n": 2, "max_tokens": 20}
    plain = (await server.complete(**body))["usage"]
    streamed = await server.events(PATH, **body, stream_options={"include_usage": True})
    assert streamed[-1]["usage"] == plain


async def test_s2_max_tokens_defaults_to_16_and_is_exact() -> None:
    server = serve(saying("x" * 50))
    choice = (await server.complete())["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("x" * 16, "length")
    assert (await server.complete(max_tokens=0))["choices"][0]["text"] == ""


async def test_s2_what_exceeds_the_context_is_400_and_never_cut() -> None:
    server = serve()
    for body in (
        {"prompt": [20] * 500, "max_tokens": 13},
        {"prompt": [20] * 512, "max_tokens": 0},
        {"prompt": "a", "max_tokens": 2**31 - 1},
    ):
        error = await server.refusal(PATH, body)
        assert error["code"] == "context_length_exceeded"
        assert "context" in error["message"]
    await server.complete(prompt=[20] * 500, max_tokens=12)


BAD = [
    ("max_tokens", [-1, 1.5, "3", True, [], 10**40]),
    ("temperature", [-0.1, 2.1, "1", True, []]),
    ("top_p", [-0.1, 1.1, "1", True]),
    ("n", [0, -1, 1.5, 129, "1", True, 10**30]),
    ("best_of", [0, 21, "2", True]),
    ("stream", [1, "true"]),
    ("stream_options", [True, []]),
    ("stop", [5, {}, [1], "", ["a", ""], [None]]),
    ("logprobs", [-1, 1000, True, "1", 1.5]),
    ("echo", ["yes", 1]),
    ("seed", ["1", 1.5, True, 2**63, -(2**63) - 1]),
    ("presence_penalty", [-2.1, 2.1, "1"]),
    ("frequency_penalty", [-2.1, 2.1, True]),
    ("logit_bias", [[], {"a": 1}, {"5": "x"}, {"-1": 1}, {"5": 101}, {"5": -101}, {"999999": 1},
                    {"²": 1}, {"1" * 40: 1}, {"1.5": 1}, {"5": None}]),
    ("suffix", ["end", 1]),
    ("top_k", [-2, 1.5, "1"]),
    ("min_p", [-0.1, 1.1]),
    ("repetition_penalty", [0, -1, "1"]),
    ("min_tokens", [-1, 17]),
    ("ignore_eos", [1, "yes"]),
    ("stop_token_ids", [5, ["a"], [-1], [10**6]]),
    ("allowed_token_ids", [[], [-1], [10**6], "a"]),
    ("bad_words", ["a", [1], [""]]),
    ("prompt_logprobs", [-1, 1000, True]),
    ("truncate_prompt_tokens", [0, -5, "1"]),
    ("priority", ["1", 2**40]),
    ("request_id", ["", 5, "x" * 129]),
    ("cache_salt", ["", 5, "x" * 129]),
    ("response_format", [{"type": "xml"}, {}, "text"]),
    ("length_penalty", [0.5]),
    ("user", [5]),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD for v in values])
async def test_s2_a_bad_value_is_400_and_names_its_field(field: str, value: Any) -> None:
    server = serve()
    error = await server.refusal(PATH, {"prompt": "a", field: value})
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(field)
    assert server.engine.requests == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"n": 1, "best_of": 2, "stream": True}, "best_of"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"use_beam_search": True, "stream": True}, "use_beam_search"),
        ({"use_beam_search": True, "logprobs": 1}, "logprobs"),
        ({"min_tokens": 4, "max_tokens": 3}, "min_tokens"),
    ],
)
async def test_s2_values_that_do_not_go_together_are_400(body: dict[str, Any], param: str) -> None:
    assert (await serve().refusal(PATH, {"prompt": "a", **body}))["param"] == param


async def test_s2_parameters_arrive_at_the_engine() -> None:
    server = serve()
    await server.complete(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        seed=-5,
        min_tokens=2,
        max_tokens=9,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.5,
        logit_bias={"30": -100, "31": 5.5},
        stop_token_ids=[40],
        allowed_token_ids=[50, 51],
        bad_words=["fox"],
        ignore_eos=True,
        n=2,
        priority=3,
        cache_salt="mine",
    )
    (request,) = server.engine.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert (sampling.min_p, request.seed, sampling.min_tokens) == (0.1, -5, 2)
    assert (sampling.max_tokens, sampling.n, sampling.ignore_eos) == (9, 2, True)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert sampling.repetition_penalty == 1.5
    assert sampling.logit_bias == {30: -100, 31: 5.5}
    assert (sampling.stop_token_ids, sampling.allowed_token_ids) == ((40,), (50, 51))
    assert sampling.bad_words_ids == (tuple(encoded("fox")), tuple(encoded(" fox")))
    assert (request.priority, request.cache_salt) == (3, "mine")


async def test_s10_without_a_seed_each_request_draws_one() -> None:
    server = serve()
    for _ in range(2):
        await server.complete()
    first, second = server.engine.requests
    assert first.seed != second.seed


async def test_s10_a_prompts_place_in_a_list_does_not_enter_its_seed() -> None:
    server = serve()
    await server.complete(prompt=["a", "b"], seed=11)
    assert [request.seed for request in server.engine.requests] == [11, 11]


async def test_s2_three_hundred_biases_are_taken() -> None:
    server = serve()
    await server.complete(logit_bias={str(i): 1 for i in range(300)})
    assert len(server.engine.requests[0].sampling.logit_bias) == 300


async def test_s2_sampling_defaults_are_the_models() -> None:
    served = model()
    object.__setattr__(served, "sampling_defaults", {"temperature": 0.6, "top_k": 20})
    server = serve(served=served)
    await server.complete()
    await server.complete(temperature=1)
    temperatures = [request.sampling.temperature for request in server.engine.requests]
    assert temperatures == [0.6, 1]
    assert server.engine.requests[1].sampling.top_k == 20


async def test_s2_truncation_keeps_the_last_tokens() -> None:
    server = serve()
    await server.complete(prompt=[20, 21, 22, 23], truncate_prompt_tokens=2)
    assert server.engine.requests[0].prompt_token_ids == (22, 23)


async def test_s2_a_request_id_appears_in_the_id() -> None:
    answer = await serve().complete(request_id="my-own-7")
    assert "my-own-7" in answer["id"]


async def test_s2_return_token_ids() -> None:
    server = serve(saying("abc"))
    choice = (await server.complete(prompt=[20, 21], return_token_ids=True))["choices"][0]
    assert choice["prompt_token_ids"] == [20, 21]
    assert choice["token_ids"] == [*encoded("abc"), 1]
    streamed = await server.events(PATH, prompt=[20, 21], return_token_ids=True)
    listed = [chunk["choices"][0] for chunk in streamed]
    assert [c.get("prompt_token_ids") for c in listed] == [[20, 21]] + [None] * (len(listed) - 1)
    assert [i for c in listed for i in c["token_ids"]] == choice["token_ids"]


async def test_s2_prompt_logprobs() -> None:
    server = serve(saying("a"))
    choice = (await server.complete(prompt=[20, 21, 22], prompt_logprobs=1))["choices"][0]
    first, second, third = choice["prompt_logprobs"]
    assert first is None
    assert second["21"] == {
        "logprob": -1.0,
        "rank": 2,
        "decoded_token": model().tokenizer.token_text(21),
    }
    assert set(third) == {"10", "22"}
    assert third["10"]["rank"] == 1
    assert choice["logprobs"] is None


async def test_s2_best_of_returns_the_likeliest_and_counts_all() -> None:
    # Each place costs more, so the shorter text has the higher mean.
    server = serve(saying("a long one", "mid", "x"))
    answer = await server.complete(n=2, best_of=3, max_tokens=20)
    assert [choice["text"] for choice in answer["choices"]] == ["x", "mid"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["choices"][0]["logprobs"] is None
    lengths = [len(encoded(text)) + 1 for text in ("a long one", "mid", "x")]
    assert answer["usage"]["completion_tokens"] == sum(lengths)
    assert server.engine.requests[0].sampling.n == 3


async def test_s2_s5_best_of_keeps_the_order_of_several_prompts() -> None:
    server = serve(saying("a long one", "mid", "x"))
    answer = await server.complete(prompt=["one", "two"], n=2, best_of=3, max_tokens=20)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == ["x", "mid"] * 2


async def test_s2_beam_search_asks_for_beams() -> None:
    server = serve(saying("a"))
    await server.complete(use_beam_search=True, best_of=4, n=2, length_penalty=0.5)
    sampling = server.engine.requests[0].sampling
    assert (sampling.beam_width, sampling.n, sampling.length_penalty) == (4, 2, 0.5)


async def test_s2_more_choices_than_a_request_may_have_are_400() -> None:
    for body in ({"prompt": ["a"] * 16_385}, {"prompt": ["a"] * 129, "n": 128}):
        error = await serve().refusal(PATH, body)
        assert error["param"] == "prompt"
        assert "16384" in error["message"]


@pytest.mark.parametrize("prompt", ["once upon", "naïve 狐狸", [200, 201, 202]])
async def test_s6c_echo_puts_the_prompt_before_each_choice(prompt: Any) -> None:
    server = serve(saying(" yes", " no"))
    text = prompt if isinstance(prompt, str) else model().tokenizer.decode(prompt)
    answer = await server.complete(prompt=prompt, echo=True, n=2)
    assert [choice["text"] for choice in answer["choices"]] == [text + " yes", text + " no"]
    streamed = await server.events(PATH, prompt=prompt, echo=True, n=2)
    first = {}
    for chunk in streamed:
        choice = chunk["choices"][0]
        first.setdefault(choice["index"], choice["text"])
    assert all(opening.startswith(text) for opening in first.values())


async def test_s6c_with_max_tokens_0_only_the_prompt_is_scored() -> None:
    server = serve(saying("ignored"))
    answer = await server.complete(prompt="once upon", echo=True, max_tokens=0, logprobs=1)
    (choice,) = answer["choices"]
    assert choice["text"] == "once upon"
    assert "".join(choice["logprobs"]["tokens"]) == "once upon"
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert None not in choice["logprobs"]["token_logprobs"][1:]
    assert answer["usage"]["completion_tokens"] == 0


async def test_s2_response_format_text_passes() -> None:
    await serve().complete(response_format={"type": "text"})
