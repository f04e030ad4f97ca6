"""`LLM`: prompts in, texts out, in one process. The bundled model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from octavo import LLM, SamplingParams
from octavo.engine.errors import ContextLengthExceeded, InvalidParameter, Unsatisfiable
from octavo.engine.params import FinishReason

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(dtype="float32", threads=1, max_model_len=256) as model:
        yield model


def test_prompts_are_answered_in_their_order(llm: LLM) -> None:
    prompts = ["The king", "Once upon a time", "A fox"]
    outputs = llm.generate(prompts, GREEDY)
    assert [output.prompt for output in outputs] == prompts
    alone = [llm.generate(prompt, GREEDY)[0].outputs[0] for prompt in prompts]
    assert [output.outputs[0] for output in outputs] == alone
    assert all(len(choice.token_ids) == 12 for choice in alone)


def test_token_ids_are_used_as_they_are(llm: LLM) -> None:
    from_text = llm.generate("Once upon a time", GREEDY)[0]
    from_ids = llm.generate(list(from_text.prompt_token_ids), GREEDY)[0]
    assert from_ids.prompt is None
    assert from_ids.outputs == from_text.outputs


def test_each_prompt_may_have_its_own_params(llm: LLM) -> None:
    short, wide = llm.generate(
        ["The king", "The queen"],
        [SamplingParams(max_tokens=3), SamplingParams(max_tokens=5, n=2, seed=1, logprobs=2)],
    )
    assert len(short.outputs[0].token_ids) <= 3
    assert [choice.index for choice in wide.outputs] == [0, 1]
    for choice in wide.outputs:
        assert len(choice.logprobs) == len(choice.token_ids)
    with pytest.raises(InvalidParameter, match="as many as there are prompts"):
        llm.generate(["a", "b"], [GREEDY])


def test_a_stop_string_cuts_the_text(llm: LLM) -> None:
    whole = llm.generate("Once upon a time", GREEDY)[0].outputs[0].text
    stop = whole[5:9]
    cut = llm.generate(
        "Once upon a time",
        SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, stop=(stop,)),
    )
    choice = cut[0].outputs[0]
    assert choice.text == whole[: whole.index(stop)]
    assert (choice.finish_reason, choice.stop_reason) == (FinishReason.STOP, stop)


def test_chat_goes_through_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is 3 plus 4?"}]
    (answer,) = llm.chat(messages, GREEDY)
    several = llm.chat([messages, messages], GREEDY)
    assert answer.prompt_token_ids[0] == 0
    assert [other.outputs for other in several] == [answer.outputs] * 2


def test_prompt_logprobs_cover_all_but_the_first_token(llm: LLM) -> None:
    (output,) = llm.generate("Once upon a time", SamplingParams(max_tokens=0, prompt_logprobs=0))
    named = [scored.token_id for scored in output.prompt_logprobs]
    assert named == list(output.prompt_token_ids[1:])
    assert output.outputs[0].text == ""


def test_what_cannot_be_served_is_refused_before_anything_runs(llm: LLM) -> None:
    before = llm.stats.step
    with pytest.raises(ContextLengthExceeded, match="256"):
        llm.generate(["fine", "The king " * 300], GREEDY)
    with pytest.raises(InvalidParameter, match="4096 is not a token id"):
        llm.generate([[1, 4096]], GREEDY)
    with pytest.raises(InvalidParameter, match="one token at least"):
        llm.generate([[]], GREEDY)
    assert llm.stats.step == before
    assert llm.stats.blocks_used == 0


def test_progress_is_told(llm: LLM) -> None:
    told: list[tuple[int, int]] = []
    llm.generate(["a", "b", "c"], GREEDY, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_bad_words_do_not_appear(llm: LLM) -> None:
    plain = llm.generate("Once upon a time", GREEDY)[0].outputs[0].text
    word = plain.split()[1]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, bad_words=(word,))
    assert word not in llm.generate("Once upon a time", params)[0].outputs[0].text.split()


def test_rules_that_leave_no_token_are_the_requests_own_fault(llm: LLM) -> None:
    only_the_end = SamplingParams(max_tokens=5, min_tokens=3, allowed_token_ids=(1, 3))
    with pytest.raises(Unsatisfiable, match="leave no token"):
        llm.generate(["A fox"], only_the_end)
    assert llm.stats.blocks_used == 0
    assert llm.generate("A fox", GREEDY)[0].outputs[0].text


@pytest.mark.parametrize("penalty", [1e-6, 1e6])
def test_the_ends_of_the_repetition_penalty_overflow_nothing(llm: LLM, penalty: float) -> None:
    params = SamplingParams(
        max_tokens=4, temperature=0.01, repetition_penalty=penalty, ignore_eos=True
    )
    assert len(llm.generate("A fox", params)[0].outputs[0].token_ids) == 4
    with pytest.raises(InvalidParameter, match="repetition_penalty"):
        SamplingParams(repetition_penalty=5e-324)
