"""API contract, section 6b (log-probabilities) and what 6c says of them."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.engine.params import FinishReason, Request
from octavo.engine.step import Delta
from octavo.server.openai.logprobs import TokenNames, prompt_pieces
from octavo.server.text.tokenizer import Tokenizer

from ..fakes.engine import told
from .serving import encoded, saying, score, serve
from .vocabularies import FAMILIES, byte_level

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
SAID = "a naïve fox 狐狸 ran."


async def lists(**body: Any) -> dict[str, Any]:
    server = serve(saying(SAID))
    answer = await server.complete(max_tokens=200, **body)
    found: dict[str, Any] = answer["choices"][0]["logprobs"]
    return found


async def test_s6b_four_lists_as_long_as_there_are_tokens() -> None:
    found = await lists(logprobs=2)
    count = len(encoded(SAID)) + 1
    assert set(found) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(found, count)


async def test_s6b_tokens_join_to_the_text_at_their_offsets() -> None:
    found = await lists(logprobs=0)
    assert "".join(found["tokens"]) == SAID
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert SAID[offset : offset + len(token)] == token


async def test_s6b_the_chosen_token_is_always_in_its_map_with_the_same_number() -> None:
    for k in (0, 1, 2, 5):
        found = await lists(logprobs=k)
        for token, logprob, top in zip(
            found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
        ):
            assert top[token] == logprob
            # The made-up chosen one is the second likeliest: outside of the first one.
            assert len(top) == max(k, 1) + (k == 1)


async def test_s6b_minus_infinity_is_written_minus_9999() -> None:
    server = serve(saying("a"))
    # Six alternatives, the last of them impossible.
    found = (await server.complete(logprobs=6))["choices"][0]["logprobs"]
    assert min(found["top_logprobs"][0].values()) == -9999.0


async def test_s6b_each_choice_has_its_own() -> None:
    answer = await serve(saying("abc", "d")).complete(n=2, logprobs=0)
    joined = ["".join(choice["logprobs"]["tokens"]) for choice in answer["choices"]]
    assert joined == ["abc", "d"]


@pytest.mark.parametrize("stop", [None, "\ufffd?"])
async def test_s6b_what_an_unfinished_last_character_becomes_belongs_to_its_tokens(
    stop: str | None,
) -> None:
    cut = encoded("a🦊")[:-1]
    assert len(cut) > 2
    server = serve(lambda request: told(cut, logprobs=score))
    body = {"logprobs": 1, "stop": stop}
    (plain,) = (await server.complete(**body))["choices"]
    assert plain["text"] == "a\ufffd"
    assert plain["logprobs"]["tokens"] == ["a", *[""] * (len(cut) - 2), "\ufffd"]
    assert plain["logprobs"]["text_offset"] == [0, *[1] * (len(cut) - 1)]
    events = await server.events(COMPLETIONS, **body)
    chunks = [chunk["choices"][0] for chunk in events]
    for name, values in plain["logprobs"].items():
        assert [v for chunk in chunks if chunk["logprobs"] for v in chunk["logprobs"][name]] == (
            values
        )


async def test_s6b_in_streams_each_entry_comes_with_its_text() -> None:
    server = serve(saying(SAID))
    events = await server.events(COMPLETIONS, max_tokens=200, logprobs=1)
    offset = 0
    for chunk in events:
        choice = chunk["choices"][0]
        entries = choice["logprobs"]
        assert "".join(entries["tokens"]) == choice["text"]
        for token, where in zip(entries["tokens"], entries["text_offset"], strict=True):
            assert where == offset
            offset += len(token)


async def test_s6b_a_held_back_characters_tokens_come_with_the_chunk_that_releases_it() -> None:
    pieces = len(encoded("狸"))
    assert pieces > 1
    events = await serve(saying("狸")).events(COMPLETIONS, logprobs=0)
    counts = [len(chunk["choices"][0]["logprobs"]["tokens"]) for chunk in events]
    texts = [chunk["choices"][0]["text"] for chunk in events]
    assert counts[: pieces - 1] == [0] * (pieces - 1)
    assert counts[texts.index("狸")] == pieces


async def test_s6b_a_stop_string_cuts_the_tokens_where_it_cuts_the_text() -> None:
    server = serve(saying("once upon a time"))
    body = {"stop": ["pon"], "logprobs": 0, "max_tokens": 50}
    choice = (await server.complete(**body))["choices"][0]
    assert choice["text"] == "once u"
    assert "".join(choice["logprobs"]["tokens"]) == "once u"
    assert len(choice["logprobs"]["tokens"]) == len(encoded("once upon"))


async def test_s6b_chat_form_has_exactly_k_alternatives_sorted() -> None:
    server = serve(saying(SAID))
    choice = (await server.chat(logprobs=True, top_logprobs=4))["choices"][0]
    assert choice["logprobs"]["refusal"] is None
    content = choice["logprobs"]["content"]
    raw = bytes(byte for entry in content for byte in entry["bytes"])
    assert raw.decode() == SAID
    for entry in content:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(entry["top_logprobs"]) == 4
        numbers = [top["logprob"] for top in entry["top_logprobs"]]
        assert numbers == sorted(numbers, reverse=True)
        assert all(set(top) == {"token", "logprob", "bytes"} for top in entry["top_logprobs"])


async def test_s6b_chat_without_top_logprobs_has_empty_lists() -> None:
    choice = (await serve(saying("ab")).chat(logprobs=True))["choices"][0]
    assert [entry["top_logprobs"] for entry in choice["logprobs"]["content"]] == [[], [], []]
    assert (await serve().chat(logprobs=False))["choices"][0]["logprobs"] is None


async def test_s6b_chat_streams_bring_the_same_entries() -> None:
    server = serve(saying(SAID))
    plain = (await server.chat(logprobs=True, top_logprobs=2))["choices"][0]["logprobs"]["content"]
    events = await server.events(CHAT, logprobs=True, top_logprobs=2)
    streamed = [
        entry
        for chunk in events
        if (found := chunk["choices"][0]["logprobs"]) is not None
        for entry in found["content"]
    ]
    assert streamed == plain


def test_s6b_a_token_that_is_no_whole_character_is_told_apart() -> None:
    first = encoded("🦊")[0]
    assert TokenNames(byte_level()).name(first).startswith("bytes:\\x")


async def test_s6b_tokens_as_ids() -> None:
    server = serve(saying("ab"))
    body = {"logprobs": 0, "return_tokens_as_token_ids": True}
    found = (await server.complete(**body))["choices"][0]["logprobs"]
    assert found["tokens"] == [f"token_id:{i}" for i in [*encoded("ab"), 1]]
    assert list(found["top_logprobs"][0]) == [f"token_id:{encoded('ab')[0]}"]


@pytest.mark.parametrize("prompt", ["once upon a 狐狸", encoded("once 狸"), [0, *encoded("x")]])
@pytest.mark.parametrize("n", [1, 2])
async def test_s6c_echo_with_logprobs_has_entries_for_all_prompt_tokens(
    prompt: Any, n: int
) -> None:
    server = serve(saying(" yes", " no", reason=FinishReason.LENGTH))
    body = {"prompt": prompt, "echo": True, "logprobs": 1, "n": n, "max_tokens": 3}
    answer = await server.complete(**body)
    ids = server.engine.requests[0].prompt_token_ids
    for choice in answer["choices"]:
        found = choice["logprobs"]
        assert "".join(found["tokens"]) == choice["text"]
        assert len(found["tokens"]) == len(ids) + len(encoded(" yes")[:3])
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        assert None not in found["token_logprobs"][1:]
        assert found["text_offset"][0] == 0
    events = await server.events(COMPLETIONS, **body)
    for choice in answer["choices"]:
        own = [e["choices"][0]["logprobs"] for e in events
               if e["choices"][0]["index"] == choice["index"]]  # fmt: skip
        for name, values in choice["logprobs"].items():
            assert [v for one in own for v in one[name]] == values


async def test_s6c_a_choice_waits_for_the_scores_of_the_prompt() -> None:
    def second_choice_first(request: Request) -> list[Delta]:
        scored = [score(i, t) for i, t in enumerate(request.prompt_token_ids[1:])]
        last = told(encoded("b"), index=1, logprobs=score)
        return [*last, *told(encoded("a"), logprobs=score, prompt_logprobs=scored)]

    server = serve(second_choice_first)
    body = {"prompt": [20, 21, 22], "echo": True, "logprobs": 0, "n": 2}
    events = await server.events(COMPLETIONS, **body)
    for chunk in events:
        assert len(chunk["choices"][0]["logprobs"]["tokens"]) == 4
        assert None not in chunk["choices"][0]["logprobs"]["token_logprobs"][1:]
    assert sorted(chunk["choices"][0]["text"][-1] for chunk in events) == ["a", "b"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["once upon", " the 狐狸 é", "a<|im_end|>b", "</s>"])
def test_s6c_prompt_tokens_join_to_the_prompt_in_every_kind_of_tokenizer(
    family: Any, text: str
) -> None:
    tokenizer: Tokenizer = family()
    for special in (False, True):
        ids = tokenizer.encode(text, add_special_tokens=special, parse_special=True)
        assert "".join(prompt_pieces(tokenizer, text, ids)) == text
