"""Log lines: one record is one line, with the request's id, and nobody can forge one."""

from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.params import FinishReason
from octavo.engine.step import StepStats
from octavo.server.observe import log
from octavo.server.observe.metrics import Metrics
from octavo.server.observe.record import FinishedRequest
from octavo.server.observe.throughput import Throughput

pytestmark = pytest.mark.usefixtures("logging_as_before")


def finished(**changes: object) -> FinishedRequest:
    values: dict[str, object] = {
        "id": "cmpl-1",
        "route": "/v1/completions",
        "status": 200,
        "total_seconds": 1.25,
        "prompt_tokens": 7,
        "output_tokens": 20,
        "cached_tokens": 3,
        "finish_reasons": (FinishReason.STOP, FinishReason.LENGTH, FinishReason.STOP),
        "first_token_seconds": 0.0105,
    }
    return FinishedRequest(**{**values, **changes})  # type: ignore[arg-type]


def lines(log_format: str, write: object, level: str = "info") -> list[str]:
    stream = io.StringIO()
    log.configure(log_format, level, stream)
    write()  # type: ignore[operator]
    return stream.getvalue().splitlines()


def test_a_finished_request_is_one_line_of_text() -> None:
    (line,) = lines("text", lambda: log.log_finished(finished()))
    stamp, level, *rest = line.split()
    assert stamp.endswith("Z")
    assert level == "INFO"
    assert " ".join(rest) == (
        "request finished route=/v1/completions status=200 prompt_tokens=7 output_tokens=20 "
        "cached_tokens=3 ttft_ms=10.5 total_ms=1250.0 finish=length,stop id=cmpl-1"
    )


def test_a_finished_request_is_one_object_of_json() -> None:
    (line,) = lines("json", lambda: log.log_finished(finished(error="boom", status=500)))
    record = json.loads(line)
    assert record["request_id"] == "cmpl-1"
    assert (record["level"], record["status"], record["error"]) == ("warning", 500, "boom")
    assert record["ttft_ms"] == 10.5
    assert record["finish"] == "length,stop"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_every_record_carries_the_id_of_the_request_it_was_written_for(log_format: str) -> None:
    def write() -> None:
        token = log.current_request_id.set("cmpl-42")
        logging.getLogger("octavo.somewhere").info("inside")
        log.current_request_id.reset(token)
        logging.getLogger("octavo.somewhere").info("outside")

    inside, outside = lines(log_format, write)
    assert "cmpl-42" in inside
    assert "cmpl-42" not in outside


@pytest.mark.parametrize("log_format", ["text", "json"])
@given(text=st.text())
def test_a_record_is_one_line_whatever_is_in_it(log_format: str, text: str) -> None:
    def write() -> None:
        logging.getLogger("octavo.x").info("%s", text)
        log.log_finished(finished(id=text, route=text, error=text))

    stream = io.StringIO()
    log.configure(log_format, "info", stream)
    write()
    written = stream.getvalue()
    assert written.count("\n") == 2
    assert len(written.splitlines()) == 2  # also no other character that ends a line
    assert "\x1b" not in written
    written.encode()  # no lone surrogates


def test_a_traceback_stays_on_its_line() -> None:
    def write() -> None:
        try:
            raise ValueError("bad\nINFO forged")
        except ValueError:
            logging.getLogger("octavo.x").exception("failed")

    (line,) = lines("text", write)
    assert "ValueError" in line
    assert "\\n" in line


def test_levels() -> None:
    def write() -> None:
        logging.getLogger("octavo.x").info("quiet")
        logging.getLogger("octavo.x").warning("heard")
        logging.getLogger("uvicorn.error").info("never")
        logging.getLogger("uvicorn.access").error("never")

    (line,) = lines("text", write, level="warning")
    assert "heard" in line


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_throughput_is_told_every_few_seconds_while_busy_and_not_when_idle() -> None:
    stream = io.StringIO()
    log.configure("text", "info", stream)
    metrics, clock = Metrics(model_name="m", longest_context=64), Clock()
    throughput = Throughput(metrics, clock)
    stats = StepStats(running=2, waiting=1, blocks_total=10, blocks_used=5)

    def work(seconds: int) -> None:
        for _ in range(seconds):
            clock.now += 1
            metrics.on_tokens(10)
            throughput.on_step(stats)

    work(5)
    assert stream.getvalue().count("\n") == 1
    assert "10.0 output tokens/s, 2 running, 1 waiting, 0 swapped, KV cache 50.0 %" in (
        stream.getvalue()
    )
    clock.now += 3600  # idle: what comes next is not spread over the hour
    work(4)
    assert stream.getvalue().count("\n") == 1
    work(2)
    assert stream.getvalue().count("\n") == 2
    assert "10.0 output tokens/s" in stream.getvalue().splitlines()[1]
