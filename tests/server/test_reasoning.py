"""Thinking is told from the answer, wherever the text is cut."""

from __future__ import annotations

import pytest

from octavo.engine.bundled import TARGET
from octavo.server.text.markers import Marker
from octavo.server.text.reasoning import ReasoningSplit, ReasoningTags, joined
from octavo.server.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_folder(TARGET)
THINK = ReasoningTags.of("... {{ '</think>' }} ...", TOKENIZER)
CONTROL = ReasoningTags(
    Marker("<|reserved_0|>", 10, hidden=True), Marker("<|reserved_1|>", 11, hidden=True)
)

CASES = [
    # text, whether the prompt opened it, reasoning, content
    ("<think>\nHm.\n</think>\n\nYes.", False, "Hm.\n", "Yes."),
    ("\n<think>Hm.</think>Yes.", False, "Hm.", "Yes."),
    ("Hm.</think>\n\nYes </think> <think>", True, "Hm.", "Yes </think> <think>"),
    ("\nHm", True, "Hm", ""),
    ("<think></think>Yes", False, "", "Yes"),
    ("Yes <think>no</think>", False, "", "Yes <think>no</think>"),
    ("<thin", False, "", "<thin"),
    ("<think>a</thin", False, "a</thin", ""),
    ("  Yes", False, "", "  Yes"),
    ("<b>", False, "", "<b>"),
    ("", False, "", ""),
]


@pytest.mark.parametrize(("said", "opened", "reasoning", "content"), CASES)
def test_the_split_does_not_depend_on_how_the_text_is_cut(
    said: str, opened: bool, reasoning: str, content: str
) -> None:
    assert THINK is not None
    ways = [[said], list(said), *([said[:i], said[i:]] for i in range(1, len(said)))]
    for pieces in ways:
        split = ReasoningSplit(THINK, opened=opened)
        passages = [p for piece in pieces for p in split.feed(0, piece)]
        passages += split.finish()
        assert all(p.text for p in passages)
        assert joined(passages, reasoning=True) == reasoning, pieces
        assert joined(passages, reasoning=False) == content, pieces


def test_tags_that_are_control_tokens_are_seen_by_their_ids() -> None:
    split = ReasoningSplit(CONTROL)
    passages = [
        p
        for token, text in [(10, ""), (50, "\nHm"), (51, "."), (11, ""), (52, " Yes"), (53, "!")]
        for p in split.feed(token, text)
    ]
    assert joined(passages, reasoning=True) == "Hm."
    assert joined(passages, reasoning=False) == "Yes!"
    assert split.reasoning_tokens == 2


def test_a_family_is_known_by_its_template() -> None:
    assert THINK is not None
    assert THINK.opening == Marker("<think>")
    magistral = ReasoningTags.of("[THINK] [/THINK]", TOKENIZER)
    assert magistral is not None
    assert magistral.closing.text == "[/THINK]"
    assert ReasoningTags.of("nothing of the kind", TOKENIZER) is None


def test_a_prompt_may_open_the_thinking() -> None:
    assert THINK is not None
    assert THINK.opened_by("<|im_start|>assistant\n<think>\n")
    assert not THINK.opened_by("<|im_start|>assistant\n")
