"""`Quarantine`: finds the request that ends the engine, by letting suspects in by halves.

A request is suspect when it stood in a step in flight at two deaths of the engine and gained no
token in between. Suspects are let in one group at a time: who gains a token is cleared, and a group
that dies is cut in halves, until one request dies alone. Of n requests, k that end the engine are
found within k * (log2(n) + 4) deaths. Whatever else the engine dies of convicts nobody who gains
tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

_SUSPICIOUS = 2  # deaths without a token in between
_CONVICTING = 2  # deaths alone: one may be an operator's kill -9
_PATIENCE = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one death of the engine said about the requests."""

    narrowed: bool = False  # suspects on probation stood in it
    convicted: str | None = None
    deaths: int = 0  # of the engine, in which the convicted one stood


class Quarantine:
    """Bookkeeping about requests by their ids; knows neither engine nor clock."""

    def __init__(self) -> None:
        self._groups: list[list[str]] = []  # of suspects; the last one is on probation
        self._deaths: Counter[str] = Counter()  # that a request stood in since it gained a token
        self._alone: Counter[str] = Counter()  # of these, that a suspect stood in alone
        self._gained: set[str] = set()  # since the engine was started
        self._indecisive = 0
        self._open = True

    @property
    def searching(self) -> bool:
        """Whether anybody is suspect."""
        return bool(self._groups)

    @property
    def patience(self) -> float:
        """Seconds that everybody else is to wait for suspects on probation, before `relent`.

        It grows with deaths that said nothing because others stood in them too.
        """
        return _PATIENCE * 2.0**self._indecisive

    def admits(self, request: str) -> bool:
        """Whether it may be given to the engine now."""
        if not self._groups or request in self._groups[-1]:
            return True
        return request in self._gained or (self._open and not self._suspects(request))

    def relent(self) -> None:
        """Those on probation take long (a long prompt perhaps): who is not suspect may go on."""
        self._open = True

    def gained(self, request: str) -> None:
        """It got a token, and is cleared. To be told of the first one from each incarnation."""
        self._forget(request)
        self._gained.add(request)

    def ended(self, request: str) -> None:
        """It is of no more interest."""
        self._forget(request)
        self._gained.discard(request)

    def died(self, in_flight: Collection[str]) -> Verdict:
        """The engine is gone, and these stood in steps that had not ended."""
        barren = [request for request in in_flight if request not in self._gained]
        self._gained.clear()
        self._deaths.update(in_flight)
        verdict = self._judge(barren)
        fresh = [
            request
            for request in barren
            if self._deaths[request] >= _SUSPICIOUS and not self._suspects(request)
        ]
        if verdict.convicted is None:
            self._groups[:0] = _halves(fresh)
        self._open = not self._groups
        return verdict

    def _judge(self, barren: list[str]) -> Verdict:
        """What the death says about those on probation."""
        stood = [request for request in self._probation if request in barren]
        if not stood:
            return Verdict()
        if len(barren) == 1:
            (alone,) = stood
            self._alone[alone] += 1
            if self._alone[alone] >= _CONVICTING:
                deaths = self._deaths[alone]
                self.ended(alone)
                return Verdict(narrowed=True, convicted=alone, deaths=deaths)
        elif len(self._probation) == 1:
            self._indecisive += 1
        group = self._groups.pop()
        rest = [request for request in group if request not in stood]
        self._groups += [rest] if rest else []
        self._groups += _halves(stood)
        return Verdict(narrowed=True)

    @property
    def _probation(self) -> list[str]:
        return self._groups[-1] if self._groups else []

    def _suspects(self, request: str) -> bool:
        return any(request in group for group in self._groups)

    def _forget(self, request: str) -> None:
        del self._deaths[request], self._alone[request]  # a Counter allows it
        if self._suspects(request):
            groups = [[other for other in group if other != request] for group in self._groups]
            self._groups = [group for group in groups if group]
            if not self._groups:
                self._indecisive = 0


def _halves(requests: Iterable[str]) -> list[list[str]]:
    """Two groups, the first half last; fewer where there is less."""
    requests = list(requests)
    middle = (len(requests) + 1) // 2
    return [group for group in (requests[middle:], requests[:middle]) if group]
