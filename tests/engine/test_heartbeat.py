"""The heartbeat in shared memory: whole records always, and what they say."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from octavo.engine.heartbeat import (
    SIZE,
    Beat,
    Heartbeat,
    Pulse,
    inherited_memory,
    shared_memory,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pair() -> tuple[Pulse, Heartbeat, Clock]:
    memory, clock = bytearray(SIZE), Clock()
    return Pulse(memory, clock), Heartbeat(memory), clock


def test_memory_that_nobody_has_written_holds_an_empty_beat() -> None:
    assert Heartbeat(bytearray(SIZE)).read() == Beat()


def test_two_steps_in_flight_name_the_requests_of_both() -> None:
    pulse, heartbeat, clock = pair()
    pulse.beat(pending=3)
    assert heartbeat.read() == Beat(pending=3, at=100.0)
    pulse.launch(0, ["a", "b"], 0.5)
    clock.now = 101.0
    pulse.launch(1, ["b", "c"], 0.25)
    assert heartbeat.read() == Beat(0, 3, 0, 101.0, 100.0, 0.5, False, ("a", "b", "c"))
    clock.now = 102.0
    pulse.land()
    assert heartbeat.read() == Beat(1, 3, 1, 102.0, 102.0, 0.25, False, ("b", "c"))
    pulse.land(completed=False)
    assert heartbeat.read() == Beat(1, 3, 0, 102.0, 0.0, 0.0, False, ())
    pulse.stumble()
    assert heartbeat.read().stumbled


def test_ids_are_told_as_they_are() -> None:
    pulse, heartbeat, _ = pair()
    names = ["cmpl-\0/1", 'a"b\n', "ü\ud800", ""]
    pulse.launch(0, names, 0.0)
    assert heartbeat.read().in_flight == tuple(names)


def test_a_step_of_more_ids_than_there_is_room_for_names_some() -> None:
    pulse, heartbeat, _ = pair()
    names = [f"request-{i:040}" for i in range(20_000)]
    pulse.launch(0, names, 0.0)
    told = heartbeat.read().in_flight
    assert 1000 < len(told) < len(names)
    assert list(told) == names[: len(told)]


def test_a_writer_that_is_killed_in_a_record_leaves_the_one_before() -> None:
    class Torn(bytearray):
        """Takes half of what is written to it, and then no more."""

        dead = False

        def __setitem__(self, at: object, value: object) -> None:
            if not self.dead:
                super().__setitem__(at, value)  # type: ignore[index, assignment]
            elif isinstance(at, slice) and isinstance(value, bytes):
                half = len(value) // 2
                super().__setitem__(slice(at.start, at.start + half), value[:half])

    memory = Torn(SIZE)
    pulse = Pulse(memory)
    pulse.launch(7, ["a"], 0.5)
    memory.dead = True
    pulse.launch(8, ["b"], 0.5)
    assert Heartbeat(memory).read().in_flight == ("a",)


def test_a_reader_never_sees_half_a_record() -> None:
    """While they are written as fast as can be: each says the same number everywhere."""
    pulse, heartbeat, _ = pair()
    stop = threading.Event()

    def write() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            pulse.launch(step, [str(step)] * 3 + [f"{step}+"], float(step))
            pulse.land()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5000):
            beat = heartbeat.read()
            if beat.in_flight:
                assert beat.predicted == beat.step
                assert beat.in_flight == (str(beat.step), f"{beat.step}+")
    finally:
        stop.set()
        writer.join()


def test_another_process_writes_it_and_its_last_words_stay() -> None:
    memory, fd = shared_memory()
    code = (
        "import os, sys; from octavo.engine.heartbeat import Pulse, inherited_memory\n"
        "pulse = Pulse(inherited_memory(int(sys.argv[1])))\n"
        "pulse.launch(5, ['x'], 0.0); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(fd)]
    assert subprocess.run(command, pass_fds=[fd], check=False).returncode == -9
    os.close(fd)
    beat = Heartbeat(memory).read()
    assert (beat.step, beat.in_flight) == (5, ("x",))


def test_the_memory_has_no_name_and_leaves_no_descriptor() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    memory, fd = shared_memory()
    assert "memfd:" in str(Path(f"/proc/self/fd/{fd}").readlink())
    inherited_memory(fd).close()
    memory.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
