"""For all tests: how long an example of hypothesis takes says something of the machine only."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("octavo", deadline=None)
settings.load_profile("octavo")
