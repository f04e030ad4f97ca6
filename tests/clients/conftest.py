"""One server for all clients here: the bundled model in float32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..e2e.daemon import Daemon, serving


@pytest.fixture(scope="package")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("clients")
    with serving(folder, "--dtype", "float32", "--kv-memory", "256MiB") as running:
        yield running


@pytest.fixture(autouse=True)
def left_idle(daemon: Daemon) -> Iterator[None]:
    """Whatever a client does, nothing of it stays behind."""
    yield
    daemon.wait_until_idle()
