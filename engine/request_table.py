"""`RequestTable`: the requests somebody listens to, and which of them the engine has been given."""

from __future__ import annotations

from collections.abc import Iterable

from .channel import Missing, RollCall
from .errors import EngineError, RequestGivenUp
from .heartbeat import Beat
from .live_request import LiveRequest
from .params import Request
from .quarantine import Quarantine, Verdict
from .step import Delta

MOST_UNREAD = 32_768  # tokens and log-probabilities of one request: at most some megabytes


class RequestTable:
    """The front end's side of the engine's request table, from one incarnation to the next.

    Messages between the two keep their order, but each of them may be lost. Once a second the
    engine is told by a roll call what is live here; a request that was submitted before the call
    and is not there when it is answered got lost, one that was submitted later did not.
    """

    def __init__(self) -> None:
        self._live: dict[str, LiveRequest] = {}
        self._held: dict[str, LiveRequest] = {}  # those that are not submitted
        self._quarantine = Quarantine()
        self._calls = 0  # roll calls so far
        self.resumed = 0  # submissions of requests that another incarnation had been given

    def __len__(self) -> int:
        return len(self._live)

    @property
    def awaited(self) -> bool:
        """Whether the engine owes tokens to somebody: the front end's own count of its work."""
        return any(self._given())

    def open(self, request: Request) -> LiveRequest:
        """Somebody listens to a new request."""
        live = self._live[request.id] = self._held[request.id] = LiveRequest(request)
        return live

    def close(self, live: LiveRequest) -> bool:
        """Nobody does any more; whether the engine has to be told."""
        del self._live[live.request.id]
        self._held.pop(live.request.id, None)
        self._quarantine.ended(live.request.id)
        return live.submitted and not live.over

    def find(self, request_id: str) -> LiveRequest | None:
        return self._live.get(request_id)

    def due(self) -> tuple[Request, ...]:
        """What is to be submitted now, with what it has emitted; it counts as submitted."""
        due = [
            live
            for name, live in self._held.items()
            if not live.over and self._quarantine.admits(name)
        ]
        for live in due:
            del self._held[live.request.id]
        self.resumed += sum(live.known_before for live in due)
        return tuple([live.submit(self._calls) for live in due])

    def deliver(self, deltas: Iterable[Delta]) -> list[LiveRequest]:
        """Hand out what a step brought; each listener is woken once.

        Returns:
            Those with more than `MOST_UNREAD` that their listener has not taken.
        """
        woken: dict[str, LiveRequest] = {}
        for delta in deltas:
            live = self._live.get(delta.request_id)
            if live is None:
                continue
            if not live.gained and (delta.token_ids or delta.last):
                live.gained = True
                self._quarantine.gained(delta.request_id)
            live.arrive(delta)
            woken[delta.request_id] = live
        for live in woken.values():
            live.wake()
        return [live for live in woken.values() if live.unread > MOST_UNREAD and not live.over]

    def fail_all(self, failure: EngineError) -> None:
        for live in self._live.values():
            live.fail(failure)

    # --- lost messages -------------------------------------------------------------------------

    def roll_call(self) -> RollCall:
        """All that the engine should have."""
        self._calls += 1
        given = list(self._given())
        return RollCall(
            self._calls,
            request_ids=tuple([live.request.id for live in given]),
            ended_choices=tuple(
                [(live.request.id, index) for live in given for index in live.ended_choices]
            ),
        )

    def miss(self, answer: Missing) -> int:
        """The engine has not got some; how many of them are `due` once more."""
        lost = [
            live
            for live in map(self._live.get, answer.request_ids)
            if live is not None
            and live.submitted
            and not live.over
            and live.calls_before < answer.number
        ]
        for live in lost:
            live.submitted = False
            self._held[live.request.id] = live
        return len(lost)

    # --- deaths --------------------------------------------------------------------------------

    def engine_died(self, beat: Beat) -> Verdict:
        """Nothing is submitted any more. `beat` is the last one of the incarnation that died: who
        stood in its steps is accused, and one that did so too often fails. Where the death was of
        the engine's own planning, everybody is."""
        given = [live.request.id for live in self._given()]
        in_flight = set(given if beat.stumbled else beat.in_flight)
        verdict = self._quarantine.died([name for name in given if name in in_flight])
        for live in self._live.values():
            live.known_before |= live.submitted
            live.submitted = False
        self._held = self._live.copy()  # in the order of their arrival
        if verdict.convicted is not None:
            self._live[verdict.convicted].fail(
                RequestGivenUp(
                    f"This request ended the engine {verdict.deaths} times and was given up."
                )
            )
        return verdict

    @property
    def suspicious(self) -> bool:
        """Whether some request is suspected of ending the engine."""
        return self._quarantine.searching

    @property
    def patience(self) -> float:
        """Seconds to wait for suspects before `relent`."""
        return self._quarantine.patience

    def relent(self) -> None:
        """Let those in who are not suspect."""
        self._quarantine.relent()

    def _given(self) -> Iterable[LiveRequest]:
        return (live for live in self._live.values() if live.submitted and not live.over)
