"""The queue before the engine: what fits in, the pace at which it empties, and who gives back."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.errors import Draining, Overloaded
from octavo.server.admission import (
    LONGEST_RETRY_SECONDS,
    UNMEASURED_SECONDS,
    Admission,
    Line,
    Permit,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def queue(
    *, requests: int = 4, tokens: int = 100, longest: float | None = None
) -> tuple[Admission, Clock]:
    clock = Clock()
    return (
        Admission(max_requests=requests, max_tokens=tokens, longest=longest, clock=clock),
        clock,
    )


def waiting(admission: Admission, *lengths: int) -> Permit:
    """A request that stands in the queue with prompts of these lengths."""
    permit = admission.permit()
    permit.enter()
    if lengths:
        permit.weigh([[0] * length for length in lengths])
    return permit


def refused(admission: Admission, *lengths: int, seconds: float | None = None) -> Overloaded:
    permit = admission.permit()
    permit.limit_time(seconds)
    with pytest.raises(Overloaded) as caught:
        permit.enter()
        permit.weigh([[0] * length for length in lengths])
    permit.release()
    return caught.value


def test_a_request_waits_until_its_last_prompt_has_begun_and_is_in_until_released() -> None:
    admission, _ = queue()
    permit = waiting(admission, 10, 20)
    assert (admission.requests.waiting, admission.tokens.waiting, admission.live) == (1, 30, 1)
    permit.begin(10)
    assert (admission.requests.waiting, admission.tokens.waiting) == (1, 20)
    permit.begin(20)
    assert (admission.requests.waiting, admission.tokens.waiting, admission.live) == (0, 0, 1)
    permit.release()
    permit.release()
    assert (admission.requests.waiting, admission.tokens.waiting, admission.live) == (0, 0, 0)


def test_before_a_pace_is_measured_the_price_of_prompts_tells_how_long_it_takes() -> None:
    admission = Admission(max_requests=9, max_tokens=10_000, token_seconds=lambda: 0.01)
    assert admission.wait() == 0
    waiting(admission, 400)
    assert admission.wait() == pytest.approx(4.0)
    error = refused(admission, 5, seconds=3.0)
    assert error.reason == "deadline"


def test_no_more_requests_than_may_wait() -> None:
    admission, _ = queue(requests=2)
    first, second = waiting(admission, 1), waiting(admission)
    error = refused(admission)
    assert error.reason == "queue_requests"
    assert "2 requests wait already, of 2" in str(error)
    first.begin(1)  # runs now
    waiting(admission, 1)
    refused(admission)
    second.release()  # left while it was being tokenized
    waiting(admission)


def test_no_more_tokens_than_may_wait_unless_nothing_else_does() -> None:
    admission, _ = queue(tokens=100)
    alone = waiting(admission, 90, 90)  # it cannot be kept waiting for anybody
    assert refused(admission).reason == "queue_tokens"  # before its tokens are counted
    alone.begin(90)
    assert "90 tokens of prompts wait already, and with the 11" in str(refused(admission, 11))
    waiting(admission, 10)
    assert admission.tokens.waiting == 100


def test_nobody_comes_in_while_draining_but_who_is_in_may_finish() -> None:
    admission, _ = queue()
    permit = admission.permit()
    inside = waiting(admission)
    admission.draining = True
    with pytest.raises(Draining):
        permit.enter()  # it had come before, but its body took its time
    inside.weigh([[0] * 5])
    inside.begin(5)


async def test_idle_is_when_the_last_one_is_out() -> None:
    admission, _ = queue()
    await admission.idle()
    permits = [waiting(admission, 1), waiting(admission)]
    idle = asyncio.create_task(admission.idle())
    for permit in permits:
        await asyncio.sleep(0)
        assert not idle.done()
        permit.release()
    await idle


def test_before_anything_has_left_the_time_to_come_back_is_a_guess() -> None:
    admission, clock = queue(requests=1)
    waiting(admission)
    assert refused(admission).retry_after == UNMEASURED_SECONDS
    clock.now += 5
    assert admission.wait() is None
    assert refused(admission).retry_after == UNMEASURED_SECONDS


def test_who_is_sent_away_is_told_how_long_the_queue_takes_at_its_pace() -> None:
    admission, clock = queue(requests=8, tokens=10_000)
    line = [waiting(admission, 10) for _ in range(8)]
    for _ in range(40):  # one in half a second, and another takes its place
        clock.now += 0.5
        line.pop(0).begin(10)
        line.append(waiting(admission, 10))
    error = refused(admission)
    assert error.retry_after == pytest.approx(4.0, rel=0.05)
    assert "try again in" in str(error)


def test_the_slower_of_the_two_measures_counts() -> None:
    admission, clock = queue(requests=100, tokens=10_000)
    line = [waiting(admission, 10) for _ in range(20)]
    for _ in range(10):
        clock.now += 1.0
        line.pop(0).begin(10)
    waiting(admission, 990)  # as many tokens as 99 of the others
    assert admission.wait() == pytest.approx(10 * 1.0 + 99.0, rel=0.05)


def test_a_quiet_night_does_not_slow_the_pace_down() -> None:
    line = Line(limit=100, clock=(clock := Clock()))
    line.join(10)
    for _ in range(10):
        clock.now += 1
        line.begin(1)
    clock.now += 10 * 3600
    line.join(10)
    assert line.seconds() == pytest.approx(10.0, rel=0.05)


def test_a_queue_that_stands_still_becomes_slow() -> None:
    line = Line(limit=100, clock=(clock := Clock()))
    line.join(20)
    for _ in range(10):
        clock.now += 1
        line.begin(1)
    waits = []
    for _ in range(5):
        waits.append(line.seconds())
        clock.now += 10
    assert all(a < b for a, b in pairwise(w for w in waits if w is not None))


def test_those_who_left_unserved_do_not_make_it_look_fast() -> None:
    line = Line(limit=100, clock=(clock := Clock()))
    line.join(50)
    for _ in range(10):
        clock.now += 1
        line.begin(1)
        line.leave(1)
    assert line.seconds() == pytest.approx(30.0, rel=0.05)


def test_nobody_is_told_to_wait_for_longer_than_clients_do() -> None:
    admission, clock = queue(requests=50)
    line = [waiting(admission, 1) for _ in range(50)]
    clock.now += 10
    line.pop().begin(1)
    waiting(admission, 1)
    assert refused(admission).retry_after == LONGEST_RETRY_SECONDS


def test_a_request_whose_turn_would_come_too_late_is_sent_away() -> None:
    admission, clock = queue(requests=100)
    line = [waiting(admission, 1) for _ in range(30)]
    for _ in range(10):
        clock.now += 1
        line.pop().begin(1)
    error = refused(admission, seconds=5.0)  # of 20 that it would have to wait
    assert error.reason == "deadline"
    assert error.retry_after == pytest.approx(15.0, rel=0.1)
    inside = admission.permit()
    inside.limit_time(30.0)
    inside.enter()


def test_the_smaller_of_the_two_limits_of_time_wins() -> None:
    admission, clock = queue(longest=10.0)
    permit = admission.permit()
    assert permit.deadline == clock.now + 10.0
    permit.limit_time(3.0)
    clock.now += 1
    assert permit.seconds_left == 2.0
    permit.limit_time(60.0)
    assert permit.seconds_left == 9.0
    unlimited = queue()[0].permit()
    assert unlimited.deadline is None
    assert unlimited.seconds_left is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_happens_the_queue_comes_back_to_nothing(data: st.DataObject) -> None:
    admission, clock = queue(requests=5, tokens=60)
    unbegun: dict[Permit, list[int]] = {}
    for _ in range(data.draw(st.integers(1, 40))):
        clock.now += data.draw(st.floats(0, 20))
        permit = data.draw(st.sampled_from([*unbegun, None]))
        if permit is None:
            permit = admission.permit()
            try:
                permit.enter()
                lengths = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=3))
                permit.weigh([[0] * length for length in lengths])
                unbegun[permit] = lengths
            except Overloaded as error:
                assert 1 <= error.retry_after <= LONGEST_RETRY_SECONDS
                permit.release()
        elif unbegun[permit] and data.draw(st.booleans()):
            permit.begin(unbegun[permit].pop())
        else:
            permit.release()
            del unbegun[permit]
        assert admission.live == len(unbegun)
        assert admission.requests.waiting == sum(1 for rest in unbegun.values() if rest) <= 5
        assert admission.tokens.waiting == sum(sum(rest) for rest in unbegun.values())
    for permit in unbegun:
        permit.release()
    assert (admission.live, admission.requests.waiting, admission.tokens.waiting) == (0, 0, 0)
