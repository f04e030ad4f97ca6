"""/openapi.json: what is served, from the same schemas that read requests and write answers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from .answers import Error
from .schema import components

_PATH_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


class Description:
    """Grows with each route that is added."""

    def __init__(self, title: str, version: str) -> None:
        self._schemas: dict[str, Any] = {}
        self._paths: dict[str, dict[str, Any]] = {}
        self._head = {"openapi": "3.1.0", "info": {"title": title, "version": version}}

    def document(self) -> dict[str, Any]:
        return {**self._head, "paths": self._paths, "components": {"schemas": self._schemas}}

    def add(
        self,
        path: str,
        endpoint: Callable[..., Any],
        method: str,
        *,
        takes: type[Struct] | None,
        gives: type[Struct] | None,
        streams: bool,
    ) -> None:
        """One route. `gives` None: the answer is described by the endpoint's own words only."""
        kinds = [kind for kind in (takes, gives, Error) if kind is not None]
        references, needed = components(*kinds)
        self._schemas.update(needed)
        found = dict(zip(kinds, references, strict=True))
        answer: dict[str, Any] = {"description": "The answer"}
        if gives is not None:
            answer["content"] = _json(found[gives])
            if streams:
                # Before OpenAPI 3.2 nothing can be said of single events.
                answer["content"]["text/event-stream"] = {"schema": {}}
        words = re.findall(r"\w+", path)
        operation: dict[str, Any] = {
            "operationId": "_".join([method.lower(), *words]),
            "summary": (inspect.getdoc(endpoint) or "").partition("\n")[0],
            "responses": {
                "200": answer,
                "default": {"description": "An error", "content": _json(found[Error])},
            },
        }
        if takes is not None:
            operation["requestBody"] = {"required": True, "content": _json(found[takes])}
        if names := _PATH_PARAMETER.findall(path):
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in names
            ]
        plain_path = _PATH_PARAMETER.sub(r"{\1}", path)
        self._paths.setdefault(plain_path, {})[method.lower()] = operation


def _json(reference: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": reference}}
