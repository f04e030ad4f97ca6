"""StopScanner against a search in the whole text, however the text was cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.server.text.stop import StopScanner

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def oracle(text: str, stops: list[str], *, include: bool) -> tuple[str, str | None]:
    """(text that is let through, the stop string)."""
    found = [(text.find(stop), place) for place, stop in enumerate(stops) if stop in text]
    if not found:
        return text, None
    start, place = min(found)
    return text[: start + (len(stops[place]) if include else 0)], stops[place]


def scan(pieces: list[str], scanner: StopScanner) -> list[str]:
    """What came out after each piece, and at the end."""
    out = []
    for piece in pieces:
        out.append(scanner.feed(piece))
        if scanner.matched is not None:
            return out
    return [*out, scanner.finish()]


@given(text=LETTERS, stops=STOPS, cuts=st.sets(st.integers(1, 11)), include=st.booleans())
def test_it_finds_what_a_search_in_the_whole_text_finds(
    text: str, stops: list[str], cuts: set[int], include: bool
) -> None:
    bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    scanner = StopScanner(stops, include=include)
    released = scan(pieces, scanner)
    assert ("".join(released), scanner.matched) == oracle(text, stops, include=include)


@given(text=LETTERS, stops=STOPS)
def test_nothing_that_may_become_a_stop_string_leaves_early(text: str, stops: list[str]) -> None:
    """After each character, what left is the beginning of every possible final answer."""
    scanner = StopScanner(stops)
    out = ""
    for place, character in enumerate(text):
        out += scanner.feed(character)
        read = text[: place + 1]
        for future in ("", *stops, *(stop[1:] for stop in stops)):
            assert oracle(read + future, stops, include=False)[0].startswith(out)
        if scanner.matched is not None:
            break


@given(text=LETTERS)
def test_text_is_held_back_no_longer_than_it_must_be(text: str) -> None:
    stop = "aab"
    scanner = StopScanner([stop])
    for character in text:
        scanner.feed(character)
        if scanner.matched is not None:
            return
        held = scanner._held
        assert stop.startswith(held)


@pytest.mark.parametrize(
    ("pieces", "stops", "expected", "matched"),
    [
        (["aaab"], ["aab"], "a", "aab"),  # its own prefix repeats before it
        (["xa", "a", "ab", "y"], ["aab"], "xa", "aab"),
        (["say END", " or"], ["or", "END"], "say ", "END"),  # place in the text, not in the list
        (["abcd"], ["abc", "abcd"], "", "abc"),  # same place: the first listed
        (["abcd"], ["abcd", "abc"], "", "abcd"),
        (["ab"], ["abc"], "ab", None),  # flushed at the end
        (["zabcde"], ["bc", "abcde"], "z", "abcde"),
        (["zabcd", "x"], ["bc", "abcde"], "za", "bc"),
        (["anything"], [], "anything", None),
        (["anything"], [""], "anything", None),
    ],
)
def test_by_example(
    pieces: list[str], stops: list[str], expected: str, matched: str | None
) -> None:
    scanner = StopScanner(stops)
    assert ("".join(scan(pieces, scanner)), scanner.matched) == (expected, matched)


def test_nothing_comes_after_the_match() -> None:
    scanner = StopScanner(["b"])
    assert scanner.feed("ab") == "a"
    assert scanner.feed("c") == scanner.finish() == ""


def test_long_repetitive_stop_strings_cost_no_more_than_their_length() -> None:
    scanner = StopScanner(["a" * 20_000 + "b"])
    out = "".join(scanner.feed("a" * 1000) for _ in range(200))
    assert len(out + scanner.finish()) == 200_000
