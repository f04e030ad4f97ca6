"""The front end gets a core of its own where it needs one, and gives it back."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from octavo.engine.worker.cores import Cores, cpu_seconds_of


@dataclass
class Machine:
    """Whose time passes by steps, in which the front end uses a share of a core."""

    now: float = 100.0
    used: float = 7.0
    threads: list[int] = field(default_factory=list)

    def cores(self, least: int, most: int) -> Cores:
        return Cores(
            least=least,
            most=most,
            front_end=lambda: self.used,
            set_threads=self.threads.append,
            clock=lambda: self.now,
        )

    def steps(self, cores: Cores, *, share: float, seconds: float) -> None:
        for _ in range(round(seconds / 0.01)):
            self.now += 0.01
            self.used += 0.01 * share
            cores.look()


def test_all_cores_compute_while_the_front_end_has_little_to_do() -> None:
    machine = Machine()
    machine.steps(machine.cores(3, 4), share=0.2, seconds=10)
    assert machine.threads == [4]


def test_a_busy_front_end_gets_a_core_until_it_is_quiet() -> None:
    machine = Machine()
    cores = machine.cores(3, 4)
    machine.steps(cores, share=0.6, seconds=2)
    assert machine.threads == [4, 3]
    machine.steps(cores, share=0.2, seconds=2)  # which it would not be if it had to wait
    assert machine.threads == [4, 3]
    machine.steps(cores, share=0.02, seconds=2)
    assert machine.threads == [4, 3, 4]


def test_one_moment_of_much_work_is_not_yet_busy() -> None:
    machine = Machine()
    cores = machine.cores(1, 2)
    for _ in range(20):
        machine.steps(cores, share=1.0, seconds=0.05)
        machine.steps(cores, share=0.0, seconds=0.45)
    assert machine.threads == [2]


def test_a_number_that_was_asked_for_stays() -> None:
    machine = Machine()
    machine.steps(machine.cores(2, 2), share=1.0, seconds=5)
    assert machine.threads == [2]


def test_the_time_that_a_process_has_used_is_known() -> None:
    own = cpu_seconds_of(os.getpid())
    before = own()
    while time.process_time() < before + 0.05:
        pass
    assert own() > before > 0


def test_a_process_that_has_gone_uses_nothing() -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    assert cpu_seconds_of(child)() == 0
