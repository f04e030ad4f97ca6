"""For operators and probes: health, metrics, version, load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.engine.errors import Draining
from octavo.version import __version__

from .observe.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from .observe.metrics import Metrics
    from .openai.desk import Desk


class Admin:
    """The endpoints; none of them waits for the engine."""

    def __init__(self, desk: Desk, metrics: Metrics) -> None:
        self._desk = desk
        self._metrics = metrics

    async def ready(self, request: Request) -> Response:
        """Whether requests can be served now; if not, the stage of starting or the reason."""
        del request
        if self._desk.admission.draining:
            raise Draining("The daemon is being shut down.")
        self._desk.require_ready()
        return _json({"status": "ready"})

    async def live(self, request: Request) -> Response:
        """Whether this process answers at all."""
        del request
        return _json({"status": "alive"})

    async def metrics(self, request: Request) -> Response:
        """Prometheus text."""
        del request
        engine = self._desk.engine
        self._metrics.on_engine(
            restarts=engine.restarts,
            resumed=engine.resumed_requests,
            heartbeat_age=engine.heartbeat_age,
        )
        return Response(self._metrics.render(), headers={"content-type": CONTENT_TYPE})

    async def version(self, request: Request) -> Response:
        """The version of this server."""
        del request
        return _json({"version": __version__})

    async def load(self, request: Request) -> Response:
        """How many requests are under way, those that wait among them."""
        del request
        return _json({"server_load": self._desk.admission.live})


def _json(content: dict[str, object]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
