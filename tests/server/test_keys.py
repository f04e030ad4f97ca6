"""API keys: where they come from, what they guard, and that they are seen nowhere."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from octavo.engine.errors import ConfigError
from octavo.server.keys import read_keys
from octavo.server.middleware import PROBES
from octavo.server.observe.log import JsonFormatter, TextFormatter
from octavo.server.settings import Settings, load
from octavo.server.settings.listing import table

from .paged import paged
from .serving import Served, error_of, serve

OPEN = {"/health", "/livez", "/readyz", "/ping", "/version", "/metrics", "/load"}


def file_of(folder: Path, text: str, mode: int = 0o600) -> str:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# --- where they come from ------------------------------------------------------------------------


def test_keys_come_from_the_setting_and_from_a_file(tmp_path: Path) -> None:
    path = file_of(tmp_path, "# ours\nfirst\n\n  second  \r\n#third\nfirst\n")
    assert read_keys(Settings(api_key=("zero",), api_key_file=path)) == ("zero", "first", "second")
    assert read_keys(load([], {"OCTAVO_API_KEY_FILE": path}).settings) == ("first", "second")
    assert read_keys(load([], {"OCTAVO_API_KEY": "a,b"}).settings) == ("a", "b")
    assert read_keys(Settings()) == ()


def test_a_file_that_others_may_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read_keys(Settings(api_key_file=file_of(tmp_path, "secret", 0o600)))
        assert not caplog.records
        read_keys(Settings(api_key_file=file_of(tmp_path, "secret", 0o640)))
    (record,) = caplog.records
    assert "chmod 600" in record.getMessage()


@pytest.mark.parametrize("text", ["", "# nothing\n\n", "a b\n", "ok\nschlüssel\n", "a\x07b"])
def test_a_file_without_usable_keys_is_refused_and_shows_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_keys(Settings(api_key_file=file_of(tmp_path, text)))
    assert "--api-key-file" in str(caught.value)
    assert "schl" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="--api-key-file"):
            read_keys(Settings(api_key_file=str(path)))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_keys(Settings(api_key_file=str(tmp_path / "binary")))


# --- what they guard -----------------------------------------------------------------------------


def test_the_open_list_is_exact() -> None:
    assert PROBES == OPEN


async def test_every_route_but_the_probes_needs_a_key() -> None:
    server = serve(api_key=("secret",))
    checked = 0
    for route in server.app.routes:
        for method in getattr(route, "methods", None) or ():
            path = getattr(route, "path", "").replace("{model:path}", "tiny")
            status = (await server.http.request(method, path, json={})).status_code
            assert (status != 401) == (path in OPEN), (method, path)
            checked += 1
    assert checked > 15


ODD_PATHS = (
    *("//v1/models", "/v1/models/", "/v1//models", "/./v1/models", "/v1/../v1/models"),
    *("/%761/models", "/v1%2fmodels", "/V1/MODELS", "/v1/models%00", "v1/models", ""),
    *("/health/../v1/models", "/health/", "//health", "/health/x", "/healthz", "/HEALTH"),
    *("/health%2f..%2fv1%2fmodels", "/metrics/", "/metrics%00", "/health;/v1/models", "/"),
    *("/v1/models/health", "/ping/v1", "/openapi.json", "/docs", "/redoc", "/favicon.ico"),
)


@pytest.mark.parametrize("root_path", [None, "/llm"])
async def test_no_spelling_of_a_path_and_no_method_goes_around_the_key(
    root_path: str | None,
) -> None:
    server = serve(api_key=("secret",), root_path=root_path)
    for method in ("GET", "HEAD", "POST", "OPTIONS", "PUT", "TRACE", "FROB"):
        for path in ODD_PATHS:
            for spelled in (path, f"/llm{path}", f"/llm/llm{path}"):
                assert await status_of(server, method, spelled) == 401, (method, spelled)


async def status_of(server: Served, method: str, path: str) -> int:
    """Called as a server calls it that passes a path on as it came."""
    sent: list[Any] = []
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"octavo")],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await server.app(scope, receive, send)
    status: int = sent[0]["status"]
    return status


@pytest.mark.parametrize("path", ["/llm/health", "/health"])
async def test_probes_are_open_below_a_proxys_path_too(path: str) -> None:
    assert (await serve(api_key=("s",), root_path="/llm").http.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/llmhealth", "/llm/llm/health", "/llm//health", "/llm"])
async def test_nothing_else_below_it_is(path: str) -> None:
    server = serve(api_key=("s",), root_path="/llm")
    assert (await server.http.get(path)).status_code == 401


async def test_each_of_several_keys_opens_and_nothing_like_them(tmp_path: Path) -> None:
    path = file_of(tmp_path, "alpha\nbeta\n")
    server = serve(api_key=("gamma",), api_key_file=path)
    for key in ("alpha", "beta", "gamma"):
        assert (await server.http.get("/v1/models", headers=bearer(key))).status_code == 200
    for key in ("", "alph", "alphaa", "ALPHA", "alpha,beta", "alpha beta", "# ours"):
        response = await server.http.get("/v1/models", headers=bearer(key))
        assert response.status_code == 401
        assert error_of(response)["code"] == "invalid_api_key"
    for first, second in (("wrong", "alpha"), ("alpha", "wrong"), ("alpha", "alpha")):
        twice = [("Authorization", f"Bearer {first}"), ("Authorization", f"Bearer {second}")]
        assert (await server.http.get("/v1/models", headers=twice)).status_code == 401


# --- that they are seen nowhere ------------------------------------------------------------------

SECRET = "sk-do-not-show"


async def test_no_key_is_in_any_log_line_answer_or_metric(caplog: pytest.LogCaptureFixture) -> None:
    server = serve(api_key=(SECRET,), log_level="debug")
    seen = ""
    with caplog.at_level(logging.DEBUG):
        for headers in (bearer(SECRET), bearer(f"{SECRET}x"), {"Authorization": SECRET}):
            for path in ("/v1/models", "/nothing", "/v1/completions", "/metrics", "/openapi.json"):
                answer = await server.http.post(path, headers=headers, content=b"{")
                seen += answer.text + str(answer.headers)
                seen += (await server.http.get(path, headers=headers)).text
    for record in caplog.records:
        seen += TextFormatter().format(record) + JsonFormatter().format(record)
    assert len(caplog.records) > 10
    assert SECRET not in seen
    assert SECRET not in repr(server.settings)
    assert SECRET not in str(server.settings)


def test_no_key_is_in_the_listing_of_settings_or_in_a_complaint(tmp_path: Path) -> None:
    loaded = load(["--api-key", SECRET], {})
    assert SECRET not in table(loaded)
    assert "(set)" in table(loaded)
    for words in (["--api-key="], ["--api-keys", SECRET], ["--api-key", SECRET, "--port", "x"]):
        with pytest.raises(ConfigError) as caught:
            load(words, {})
        assert SECRET not in str(caught.value)
    config = tmp_path / "octavo.yaml"
    config.write_text(json.dumps({"api-key": [SECRET, ""]}))
    with pytest.raises(ConfigError) as caught:
        load(["--config", str(config)], {})
    assert SECRET not in str(caught.value)


# --- whose prefix cache --------------------------------------------------------------------------

PROMPT = "a prompt of several blocks, long enough to be found again: " + "word " * 20


async def cached(client: httpx.AsyncClient, key: str, **body: Any) -> int:
    content = {"prompt": PROMPT, "max_tokens": 1, **body}
    response = await client.post("/v1/completions", json=content, headers=bearer(key))
    assert response.status_code == 200, response.text
    return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


async def test_with_a_salt_per_key_nobody_finds_what_another_key_asked() -> None:
    keys = {"api_key": ("one", "two"), "prefix_cache_salt": "key"}
    async with paged(**keys) as server:  # type: ignore[arg-type]
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://octavo") as client:
            assert await cached(client, "one") == 0
            assert await cached(client, "one") > 0
            assert await cached(client, "two") == 0
            assert await cached(client, "two") > 0
            # A request's own salt separates further, and cannot be made to look like another key.
            for salt in ("x", "key 1/", "key 0/", "/", "key 1"):
                assert await cached(client, "one", cache_salt=salt) == 0
                assert await cached(client, "two", cache_salt=salt) == 0
                assert await cached(client, "one", cache_salt=salt) > 0


async def test_without_it_all_keys_share_and_a_requests_salt_separates() -> None:
    async with paged(api_key=("one", "two")) as server:
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://octavo") as client:
            assert await cached(client, "one") == 0
            assert await cached(client, "two") > 0
            assert await cached(client, "two", cache_salt="x") == 0
            assert await cached(client, "one", cache_salt="x") > 0


def test_a_salt_per_key_without_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match="--prefix-cache-salt key needs"):
        read_keys(Settings(prefix_cache_salt="key"))
