"""Clocks jump: times that are compared are monotonic, the wall clock only tells people."""

from __future__ import annotations

import re

from .source import modules

# Who may ask what time it is, and what for.
WALL_CLOCK = {
    "octavo.server.observe.families": "`_created` of histograms, as Prometheus defines it",
    "octavo.server.openai.desk": "`created` of answers",
    "octavo.server.text.template_sandbox": "today's date, for templates that tell it",
}
_ASKS = re.compile(
    r"time\.time\(|time_ns\(|datetime\.(?:datetime\.)?(?:now|utcnow|today)\(|date\.today\("
    r"|from time import time\b|CLOCK_REALTIME|time\.(?:gmtime|localtime|ctime)\(\)"
)


def test_the_wall_clock_is_asked_only_where_people_are_told_the_time() -> None:
    asking = {
        module.name
        for module in modules()
        if _ASKS.search(module.path.read_text("utf-8"))
        and not module.name.startswith("octavo.loadtest")  # it dates its reports
    }
    assert asking == set(WALL_CLOCK)
