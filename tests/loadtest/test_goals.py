"""The judging of goals, and what surrounds it: plans, command lines, child processes, the page."""

from __future__ import annotations

import os
import sys
import time
import urllib.request
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from octavo.loadtest.goals.ceilings import compute_share, decode_share
from octavo.loadtest.goals.launches import Peers, octavo
from octavo.loadtest.goals.page import lines_of, page, svg_of
from octavo.loadtest.goals.plan import plan
from octavo.loadtest.goals.servers import Launch, NotStarted, Server, paused
from octavo.loadtest.goals.table import GOALS, Goal, Judged, Key, judge

OURS: Key = ("110m", "octavo", "b", "tokens/s")
LLAMA: Key = ("110m", "llama.cpp", "b", "tokens/s")
VLLM: Key = ("110m", "vllm", "b", "tokens/s")
RATIO = Goal(name="B", figure=OURS, against=[LLAMA, VLLM], goal=1.2, stretch=1.35)
LATENCY = Goal(name="gap", figure=OURS, goal=0.25, stretch=0.1, at_most=True, unit="s")


def judged(goal: Goal, figures: dict[Key, float], **missing: str) -> Judged:
    (row,) = judge([goal], {key: [value] for key, value in figures.items()}, missing)
    return row


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [(135.0, "stretch met"), (134.0, "met"), (120.0, "met"), (119.0, "missed")],
)
def test_a_ratio_is_over_the_better_of_the_peers(ours: float, verdict: str) -> None:
    row = judged(RATIO, {OURS: ours, LLAMA: 100.0, VLLM: 90.0})
    assert row.verdict == verdict
    assert row.value == pytest.approx(ours / 100.0)
    assert (row.figure, row.peer, row.peer_name, row.note) == (ours, 100.0, "llama.cpp", "")


@pytest.mark.parametrize(
    ("ours", "verdict"), [(0.1, "stretch met"), (0.25, "met"), (0.26, "missed")]
)
def test_a_value_that_must_be_small_needs_no_peer(ours: float, verdict: str) -> None:
    row = judged(LATENCY, {OURS: ours})
    assert (row.verdict, row.value, row.peer) == (verdict, ours, None)


def test_a_ratio_that_must_be_small_is_over_the_smaller_of_the_others() -> None:
    goal = Goal(name="x", figure=OURS, against=[LLAMA, VLLM], goal=1.3, at_most=True)
    assert judged(goal, {OURS: 2.0, LLAMA: 4.0, VLLM: 1.0}).verdict == "missed"
    assert judged(goal, {OURS: 2.0, LLAMA: 4.0, VLLM: 1.6}).verdict == "met"


def test_a_ratio_is_the_median_of_those_by_round() -> None:
    """The machine was half as fast in the second round, for both."""
    figures = {OURS: [200.0, 90.0, 170.0], LLAMA: [100.0, 50.0, 110.0]}
    (row,) = judge([RATIO], figures, {"vllm": "not installed"})
    assert (row.value, row.figure, row.peer) == (pytest.approx(1.8), 170.0, 100.0)
    (row,) = judge([RATIO], figures | {LLAMA: [100.0, 50.0]}, {})  # it failed in one
    assert row.value == pytest.approx(170 / 75)


def test_who_is_missing_is_told_and_nobody_is_compared_with_nothing() -> None:
    row = judged(RATIO, {OURS: 200.0, LLAMA: 100.0}, vllm="not installed")
    assert (row.verdict, row.note) == ("stretch met", "vllm: not installed")
    row = judged(RATIO, {OURS: 200.0}, vllm="not installed")
    assert (row.verdict, row.value, row.figure) == ("not run", None, 200.0)
    assert row.note == "llama.cpp: B was not measured with 110m; vllm: not installed"
    row = judged(RATIO, {LLAMA: 100.0}, **{"octavo 110m": "it ended with 1"})
    assert (row.verdict, row.note) == ("not run", "octavo: it ended with 1")


def test_what_stands_beside_a_figure_is_over_the_same_peer() -> None:
    plain: Key = ("110m", "octavo plain", "b", "tokens/s")
    goal = replace(RATIO, beside=(plain, "{:.3g} without guesses"))
    figures = {OURS: 300.0, plain: 110.0, LLAMA: 100.0, VLLM: 50.0}
    row = judged(goal, figures)
    assert (row.verdict, row.value) == ("stretch met", pytest.approx(3.0))
    assert row.note == "1.1 without guesses"
    assert judged(goal, {OURS: 300.0, LLAMA: 100.0, VLLM: 50.0}).note == ""
    row = judged(goal, {OURS: 300.0, plain: 110.0, LLAMA: 100.0}, vllm="not installed")
    assert row.note == "1.1 without guesses; vllm: not installed"


def test_kernels_are_compared_without_guesses() -> None:
    """Where one side is quantized, neither guesses; else octavo is measured as it comes."""
    for kind in ("plain", "int8", "int4"):
        command = octavo(Path("m"), Peers(), kind).command
        assert command[command.index("--speculative") + 1] == "none"
    assert "--speculative" not in octavo(Path("m"), Peers()).command
    for goal in GOALS:
        if goal.figure[1] in ("octavo int8", "octavo int4"):
            assert all(peer != "octavo" for _, peer, _, _ in goal.against)


def test_a_peer_that_did_nothing_is_no_peer() -> None:
    assert judged(RATIO, {OURS: 200.0, LLAMA: 0.0, VLLM: 100.0}).peer_name == "vllm"


def test_every_goal_is_measured_by_some_plan(tmp_path: Path) -> None:
    for shape in ("110m", "15m"):
        (tmp_path / shape).mkdir()
        for file in ("bf16.gguf", "q4_0.gguf"):
            (tmp_path / shape / file).touch()
    peers = Peers(llama_server=Path("llama-server"), vllm_python=Path("python"))
    plans = [plan(shape, tmp_path / shape, peers) for shape in ("110m", "15m")]
    measured = {
        (each.model, part.launch.name, scenario)
        for each in plans
        for part in each.parts
        for scenario in part.scenarios
    } | {("110m", "offline", "c"), ("15m", "host path", "s")}
    for goal in GOALS:
        for model, server, scenario, _ in (goal.figure, *goal.against):
            assert (model, server, scenario) in measured
    assert not any(each.missing for each in plans)


def test_what_is_not_installed_is_missing_with_the_flag_that_names_it(tmp_path: Path) -> None:
    missing = plan("110m", tmp_path, Peers()).missing
    assert set(missing) == {"llama.cpp", "llama.cpp q4_0", "vllm", "vllm all cores"}
    assert "--vllm-python" in missing["vllm"]


def test_flags_for_a_server_reach_it_and_its_quantized_kin() -> None:
    peers = Peers(flags={"octavo": ["--threads", "2"], "octavo int8": ["--x"]})
    assert octavo(Path("m"), peers).command[-2:] == ["--threads", "2"]
    assert octavo(Path("m"), peers, "int8").command[-3:] == ["--threads", "2", "--x"]
    assert octavo(Path("m"), peers, "int4").command[-2:] == ["--threads", "2"]


def test_vllm_is_measured_with_its_own_cores_and_with_all(tmp_path: Path) -> None:
    parts = plan("15m", tmp_path, Peers(vllm_python=Path("python"))).parts
    own, wide = (part.launch for part in parts if part.launch.name.startswith("vllm"))
    assert "VLLM_CPU_OMP_THREADS_BIND" not in own.environment
    cores = wide.environment["VLLM_CPU_OMP_THREADS_BIND"].split(",")
    assert len(cores) == len(os.sched_getaffinity(0))


PROGRAM = """
import http.server, sys, time
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        end = time.process_time() + 0.2
        while time.process_time() < end: pass
        self.send_response(200); self.send_header('content-length', '0'); self.end_headers()
    def log_message(self, *words): pass
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Answer).serve_forever()
"""


def test_a_server_is_started_watched_and_stopped(tmp_path: Path) -> None:
    launch = Launch(name="x", command=[sys.executable, "-c", PROGRAM, "{port}"])
    server = Server(launch, tmp_path / "log")
    try:
        assert server.start_seconds > 0
        assert server.cpu_seconds(children=True) >= server.cpu_seconds(children=False) >= 0.15
    finally:
        server.stop()
    assert not Path(f"/proc/{server.pid}").exists()


def test_a_server_is_left_to_what_it_still_does_when_it_is_ready(tmp_path: Path) -> None:
    busy = """
import threading, time
def work():
    while time.process_time() < 0.7: pass
threading.Thread(target=work).start()
"""
    launch = Launch(name="x", command=[sys.executable, "-c", busy + PROGRAM, "{port}"])
    server = Server(launch, tmp_path / "log")
    try:
        server.rest(most_seconds=60)
        assert server.cpu_seconds(children=True) >= 0.65
    finally:
        server.stop()


def test_a_server_that_never_rests_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    busy = """
import threading
def work():
    while True: pass
threading.Thread(target=work, daemon=True).start()
"""
    launch = Launch(name="x", command=[sys.executable, "-c", busy + PROGRAM, "{port}"])
    server = Server(launch, tmp_path / "log")
    try:
        server.rest(most_seconds=0.3)
    finally:
        server.stop()


def test_a_server_that_is_paused_does_nothing_and_goes_on_afterwards(tmp_path: Path) -> None:
    launch = Launch(name="x", command=[sys.executable, "-c", PROGRAM, "{port}"])
    server = Server(launch, tmp_path / "log")
    stat = Path(f"/proc/{server.pid}/stat")
    try:
        with paused([server]):
            while stat.read_text().rpartition(") ")[2][0] != "T":  # stopped
                time.sleep(0.01)
        assert urllib.request.urlopen(server.url, timeout=30).status == 200
    finally:
        server.stop()


def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such flag')"]
    with pytest.raises(NotStarted, match="ended with 1: no such flag"):
        Server(Launch(name="x", command=command), tmp_path / "log")


def test_shares_of_the_ceilings() -> None:
    ceiling = {
        "read GB/s, 1 threads": 20.0,
        "read GB/s, 2 threads": 50.0,
        "bf16 GFLOP/s, 2 threads": 400.0,
        "fp32 GFLOP/s, 2 threads": 200.0,
    }
    # 200 MB of weights in 8 ms are 25 GB/s; 2 operations, 100 M parameters, 1000 tokens/s.
    assert decode_share(ceiling, seconds_per_token=0.008, weight_bytes=2e8) == pytest.approx(0.5)
    assert compute_share(ceiling, tokens_per_second=1000, parameters=1e8) == pytest.approx(0.5)
    assert decode_share({}, seconds_per_token=0.008, weight_bytes=2e8) is None
    assert compute_share({}, tokens_per_second=1.0, parameters=1.0) is None


def result() -> dict[str, Any]:
    rows = judge([RATIO, LATENCY], {OURS: [130.0], LLAMA: [100.0]}, {"vllm": "not <installed>"})
    return {
        "date": "2026-01-01",
        "machine": {"cpu": "X", "cores": 2, "memory_gib": 8},
        "versions": {"octavo": "1"},
        "load_average": [0.1, 0.1, 0.1],
        "rounds": 3,
        "others_cpu": 0.5,
        "peers": {"llama.cpp": "b1"},
        "ceilings": {"read GB/s, 2 threads": 50.0},
        "shares": {"A": 0.5},
        "rows": [asdict(row) for row in rows],
        "start_seconds": {"octavo": 1.0},
        "figures": {"110m | octavo | b | tokens/s": {"median": 130.0, "rounds": [120.0, 130.0]}},
    }


def test_the_table_tells_goal_figure_verdict_and_disturbance() -> None:
    lines = lines_of(result())
    assert any("others used up to 50%" in line for line in lines)
    (row,) = [line for line in lines if line.startswith("B ")]
    assert row.split()[1:5] == [">=", "1.2", "1.35", "1.3"]
    assert "met (vllm: not <installed>)" in row


def test_page_and_plot_are_well_formed_and_load_nothing() -> None:
    drawn = page(result())
    assert "not &lt;installed&gt;" in drawn
    svg = svg_of(result())
    tree = ElementTree.fromstring(svg)
    bars = list(tree.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(bars) == 2
    for text in (drawn, svg.replace("http://www.w3.org/2000/svg", "")):
        for forbidden in ("<script", "http:", "https:", "@import", "url("):
            assert forbidden not in text
