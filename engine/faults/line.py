"""`LossyLine`: a channel that loses the step reports it was told to lose."""

from __future__ import annotations

from collections.abc import Sequence

from ..channel import Channel, Message, StepReport, Submit
from .fault import Fault


class LossyLine:
    """A `Channel` to whoever uses it. Only reports of computed steps are ever lost."""

    def __init__(self, inner: Channel, faults: Sequence[Fault]) -> None:
        self._inner = inner
        self._faults = [
            fault
            for fault in faults
            if fault.action == "lose-message" and fault.epoch in (None, inner.epoch)
        ]
        self._marked: dict[Fault, set[str]] = {fault: set() for fault in self._faults}

    def send(self, message: Message) -> None:
        if isinstance(message, StepReport) and any(self._due(f, message) for f in self._faults):
            return
        self._inner.send(message)

    def receive(self, *, wait: bool) -> list[Message]:
        messages = self._inner.receive(wait=wait)
        for message in messages:
            if isinstance(message, Submit):
                for fault, requests in self._marked.items():
                    requests.update(
                        r.id for r in message.requests if fault.token in r.prompt_token_ids
                    )
        return messages

    def _due(self, fault: Fault, report: StepReport) -> bool:
        if not report.stats.sequences_computed or fault.step not in (None, report.stats.step):
            return False
        return fault.token is None or any(
            delta.request_id in self._marked[fault] for delta in report.deltas
        )
