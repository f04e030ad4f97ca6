"""From answers to figures: events, quantiles, service levels, scenarios, sweeps, comparisons."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from octavo.loadtest import plots
from octavo.loadtest import scenario as scenarios
from octavo.loadtest.compare import compared, differences
from octavo.loadtest.events import Exchange, events, read
from octavo.loadtest.page import page
from octavo.loadtest.report import Quantiles, Report, Slo, gaps_during
from octavo.loadtest.result import disturbed, result_of, warnings_of
from octavo.loadtest.run import Measurement, Target
from octavo.loadtest.sweep import highest_rate
from octavo.loadtest.wire import Transcript
from octavo.loadtest.workload import Asking


def exchange(*arrivals: float, tokens: int | None = None, sent: float = 10.0) -> Exchange:
    return Exchange(
        sent=sent,
        status=200,
        arrivals=list(arrivals),
        ended=arrivals[-1],
        output_tokens=len(arrivals) if tokens is None else tokens,
    )


def result(*exchanges: Exchange, client_cpu: float = 0.1) -> dict[str, Any]:
    scenario = scenarios.load("a")
    measured = Measurement(
        began=10.0, seconds=2.0, client_cpu=client_cpu, exchanges={"stream": list(exchanges)}
    )
    target = Target(base_url="http://there", asking=Asking(model="m"))
    made = result_of(scenario, measured, target=target, slo=Slo(ttft=1.0), server="1")
    made["load_average"] = [0.0, 0.0, 0.0]
    return made


STREAM = (
    b"data: one\r\n\r\n: ping\r\n\r\ndata:two\r\nid: 3\r\ndata: more\r\n\r\ndata: [DONE]\r\n\r\n"
)


@pytest.mark.parametrize("ending", [b"\r\n", b"\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 1000])
def test_events_are_read_whatever_ends_their_lines_and_wherever_they_are_cut(
    ending: bytes, size: int
) -> None:
    text = STREAM.replace(b"\r\n", ending) + (b"x" if ending == b"\r" else b"")
    pieces = [(float(i), text[i : i + size]) for i in range(0, len(text), size)]
    found = list(events(pieces))
    assert [data for _, data in found] == [b"one", b"two\nmore", b"[DONE]"]
    assert [when for when, _ in found] == sorted(when for when, _ in found)


def test_an_event_arrives_with_the_piece_that_completes_it() -> None:
    found = list(events([(1.0, b"data: a"), (2.0, b"b\n"), (3.0, b"\ndata: c\n\n")]))
    assert found == [(3.0, b"ab"), (3.0, b"c")]


def stream_of(*answers: object) -> Transcript:
    text = b"".join(b"data: " + json.dumps(answer).encode() + b"\n\n" for answer in answers)
    pieces = [(11.0, text), (12.0, b"data: [DONE]\n\n")]
    return Transcript(
        sent=10.0,
        status=200,
        headers={b"content-type": b"text/event-stream; charset=utf-8"},
        pieces=pieces,
        ended=12.0,
    )


def test_only_events_with_text_are_arrivals() -> None:
    usage = {
        "completion_tokens": 3,
        "prompt_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    told = read(
        stream_of(
            {"choices": [{"delta": {"role": "assistant"}}]},
            {"choices": [{"delta": {"content": "a"}}]},
            {"choices": [{"delta": {"reasoning_content": "b"}}]},
            {"choices": [{"text": "c"}]},
            {"choices": [{"text": "", "finish_reason": "length"}]},
            {"choices": [], "usage": usage},
        )
    )
    assert told.error is None
    assert told.arrivals == [11.0] * 3
    assert (told.output_tokens, told.prompt_tokens, told.cached_tokens) == (3, 5, 4)


def test_a_stream_may_end_with_why_it_finished() -> None:
    told = stream_of({"choices": [{"text": "a"}]}, {"choices": [{"finish_reason": "length"}]})
    told.pieces.pop()  # [DONE]
    assert read(told).error is None
    cut = stream_of({"choices": [{"text": "a", "finish_reason": None}]})
    cut.pieces.pop()
    assert "without [DONE]" in str(read(cut).error)


@pytest.mark.parametrize(
    ("transcript", "why"),
    [
        (stream_of({"error": {"message": "full"}}), "full"),
        (Transcript(sent=0.0, status=500, pieces=[(1.0, b"oops")]), "not an answer"),
        (Transcript(sent=0.0, status=404, pieces=[(1.0, b"{}")]), "status 404"),
        (Transcript(sent=0.0, status=200, pieces=[(1.0, b"[]")]), "not an answer"),
        (Transcript(sent=0.0, error="refused"), "refused"),
    ],
)
def test_what_is_wrong_with_an_answer_is_told(transcript: Transcript, why: str) -> None:
    told = read(transcript)
    assert why in str(told.error)
    assert not told.good


def test_latencies_come_from_arrivals() -> None:
    report = Report.of([exchange(10.5, 10.75, 11.5)], seconds=2.0, client_cpu=0.5)
    assert report.ttft.worst == 0.5
    assert (report.itl.p50, report.itl.worst) == (0.75, 0.75)
    assert report.tpot.p50 == 0.5
    assert report.output_tokens_per_second == 1.5
    assert report.client_cpu_share == 0.25
    assert (report.goodput, report.within_slo) == (None, None)


def test_goodput_counts_the_requests_that_kept_every_level() -> None:
    quick, late, slow = exchange(10.2, 10.3), exchange(11.2, 11.3), exchange(10.2, 11.2)
    failed = Exchange(sent=10.0, status=429)
    slo = Slo(ttft=0.5, tpot=0.5)
    report = Report.of([quick, late, slow, failed], seconds=2.0, slo=slo)
    assert (report.within_slo, report.goodput) == (0.25, 0.5)
    assert Slo(tpot=0.1).kept_by(exchange(12.0))  # one token has no time per token


def test_quantiles() -> None:
    assert Quantiles.of(float(i) for i in range(100)) == Quantiles(
        p50=50.0, p90=90.0, p99=99.0, worst=99.0
    )
    assert Quantiles.of([]) == Quantiles(p50=0.0, p90=0.0, p99=0.0, worst=0.0)


def test_a_gap_counts_while_any_part_of_it_is_in_the_time_watched() -> None:
    stream = exchange(1.0, 2.0, 5.0, 5.5, 9.0)
    assert gaps_during([stream], 3.0, 5.2) == [3.0, 0.5]


def test_a_scenario_tells_what_one_workload_does_to_another() -> None:
    running, long = exchange(1.0, 2.0, 6.0, 6.1), exchange(5.5, sent=2.5)
    measured = Measurement(exchanges={"running": [running], "long": [long]})
    told = disturbed(scenarios.load("e"), measured)
    assert told is not None
    assert told["ttft"] == 3.0
    assert (told["gaps"]["p50"], told["gaps"]["worst"]) == (4.0, 4.0)


@pytest.mark.parametrize("name", scenarios.names())
def test_every_scenario_can_be_read(name: str) -> None:
    scenario = scenarios.load(name)
    assert scenario.requests >= 1
    assert all(len(list(w.bodies(Asking(model="m")))) == w.requests for w in scenario.workloads)


def test_a_scenario_with_a_word_nobody_knows_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "odd.toml"
    path.write_text('title = "x"\n[[workload]]\nrequests = 1\nprompt = 1\noutput = 1\nspeed = 2\n')
    with pytest.raises(ValueError, match="no speed"):
        scenarios.load(str(path))
    with pytest.raises(ValueError, match="there are a, b, c"):
        scenarios.load("nothing")


@pytest.mark.parametrize("start", [0.3, 4.0, 60.0])
async def test_a_sweep_finds_the_rate_at_which_the_level_breaks(start: float) -> None:
    async def try_rate(rate: float) -> float:
        return 1.0 if rate <= 7.3 else 0.2

    trials = await highest_rate(try_rate, start=start, attainment=0.9, precision=0.05)
    kept = [trial.rate for trial in trials if trial.share >= 0.9]
    assert 7.3 / 1.05 <= max(kept) <= 7.3


async def test_a_sweep_ends_where_no_rate_keeps_the_level_or_all_do() -> None:
    for share in (0.0, 1.0):

        async def try_rate(rate: float, share: float = share) -> float:
            return share

        trials = await highest_rate(try_rate, start=1.0, attainment=0.9, precision=0.05)
        assert len(trials) == 11


def test_a_comparison_names_both_sides_and_which_is_better() -> None:
    slow, fast = result(exchange(10.5, 11.5)), result(exchange(10.25, 10.75))
    lines = compared(slow, fast)
    assert lines[0].startswith("A: m at http://there (version 1)")
    (ttft,) = [line for line in lines if line.startswith("TTFT p50")]
    assert ttft.split()[-2:] == ["0.50", "B"]
    assert differences(slow, fast) == []


def test_a_comparison_warns_of_all_that_differs() -> None:
    a = result(exchange(10.5, 11.5))
    b = copy.deepcopy(a)
    b["machine"]["cores"] = 999
    b["versions"]["torch"] = "0.0"
    b["load"]["prompts"] = "text"
    b["load_average"] = [9.0, 9.0, 9.0]
    b["slo"] = None
    told = " ".join(differences(a, b))
    for word in ("cores", "torch", "same requests", "service levels", "load average"):
        assert word in told


def test_a_client_that_may_be_the_bottleneck_says_so() -> None:
    assert warnings_of(result(exchange(10.5), client_cpu=0.9)) == []
    (told,) = warnings_of(result(exchange(10.5), client_cpu=1.2))
    assert "60% of a core" in told


def test_the_page_holds_plots_and_loads_nothing() -> None:
    drawn = page([result(exchange(10.5, 11.5)), result(exchange(10.25, 10.75, 11.9))])
    assert drawn.count("<svg") == 5
    for forbidden in ("<script", "http:", "https:", "@import", "url("):
        assert forbidden not in drawn.replace("http://there", "")


def test_the_timeline_counts_a_request_for_the_time_it_took() -> None:
    half, whole = exchange(10.5, 11.0), exchange(11.0, 12.0)
    timeline = result(half, whole)["timeline"]
    slots = len(timeline["running"])
    assert timeline["slot_seconds"] * slots == pytest.approx(2.0)
    assert sum(timeline["running"]) / slots == pytest.approx((1.0 + 2.0) / 2.0)
    assert max(timeline["running"]) == 2.0
    assert sum(timeline["events"]) == 4


@pytest.mark.parametrize("top", [0.003, 0.7, 1.0, 64.0, 99.9, 12345.0])
def test_an_axis_has_a_few_round_ticks_up_to_its_end(top: float) -> None:
    marks = plots.ticks(top)
    assert 3 <= len(marks) <= 8
    assert marks[0] == 0
    assert top - marks[1] < marks[-1] <= top * (1 + 1e-9)
