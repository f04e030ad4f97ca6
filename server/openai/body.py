"""Reading a request's body: bounded in size and time, strict JSON, then a schema.

Strict means: UTF-8 without lone surrogates, no NaN or Infinity, no key twice in one object, and
nesting that code which walks the value can bear.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec

from octavo.engine.errors import InvalidParameter, RequestError

from .errors import BodyTimeout, BodyTooLarge, WrongMediaType

if TYPE_CHECKING:
    from starlette.requests import Request

    from ..bodies import Share

MAX_DEPTH = 128
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")

Schema = TypeVar("Schema", bound=msgspec.Struct)


class _NotStrict(ValueError):
    """JSON as Python takes it, but not as RFC 8259 has it."""


async def read_body(request: Request, *, share: Share, limit: int, seconds: float) -> bytes:
    """The body as it came. `limit` in bytes, to arrive within `seconds`; `share` counts it.

    Raises:
        RequestError: it is too long, too late, or says that it is not JSON.
        Overloaded: too much of other bodies is held.
    """
    _require_json_type(request.headers.get("content-type"))
    _require_plain(request.headers.get("content-encoding", ""))
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and len(announced) < 20 and int(announced) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(seconds):
            return await _read(request, share, limit)
    except TimeoutError:
        raise BodyTimeout(f"The body did not arrive within {seconds:g} seconds.") from None


def parse_json(body: bytes) -> dict[str, Any]:
    """Raises RequestError: `body` is not one strict JSON object."""
    if not body.strip():
        raise RequestError("The request has no body; a JSON object is needed.")
    try:
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise RequestError("The body is not valid UTF-8.") from None
    except RecursionError:
        raise RequestError(f"The body is nested deeper than {MAX_DEPTH} levels.") from None
    except (json.JSONDecodeError, _NotStrict) as error:
        raise RequestError(f"The body is not valid JSON: {error}.") from None
    except ValueError:  # which Python raises for nothing else here
        most = sys.get_int_max_str_digits()
        raise RequestError(f"The body has a number of more than {most} digits.") from None
    if not isinstance(value, dict):
        raise RequestError("The body must be a JSON object.")
    _walk(value, check_strings=_SURROGATE.search(text) is not None)
    return value


def to_schema(value: dict[str, Any], schema: type[Schema]) -> Schema:
    """`value` as a `schema`; unknown fields are ignored.

    Raises:
        InvalidParameter: a field is missing or of the wrong type; `param` is its path.
    """
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None


def _explained(complaint: str) -> InvalidParameter:
    """ "Expected `int`, got `str` - at `$.stop[0]`" as a sentence with a param."""
    match = _PLACE.match(complaint)
    what, path = (match["what"], match["path"]) if match else (complaint, None)
    what = what.replace("`", "")
    if missing := _MISSING.search(complaint):
        path = f"{path}.{missing['field']}" if path else missing["field"]
        return InvalidParameter(f"{path} is required.", param=path)
    path = path.removesuffix("[...]") if path else None
    what = what[:1].lower() + what[1:]
    return InvalidParameter(f"{path or 'The body'}: {what}.", param=path)


async def _read(request: Request, share: Share, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        share.take(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is longer than {limit} bytes.")


def _require_json_type(content_type: str | None) -> None:
    if content_type is None:
        return
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in ("application/json", "text/json", "text/plain", "") and not kind.endswith(
        "+json"
    ):
        raise WrongMediaType(f"The body must be application/json, but it is said to be {kind}.")


def _require_plain(coding: str) -> None:
    """What is packed small may be large beyond any limit when it is unpacked."""
    if coding.strip().lower() not in ("", "identity"):
        raise WrongMediaType(f"The body must come as it is, without Content-Encoding: {coding}.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _NotStrict(f"the key {twice[:80]!r} stands twice in one object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise _NotStrict(f"{name} is no JSON number")


def _walk(value: dict[str, Any], *, check_strings: bool) -> None:
    """Level by level, without recursion."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            if isinstance(container, dict):
                if check_strings:
                    _require_text(container)
                container = container.values()
            for item in container:
                if isinstance(item, dict | list):
                    below.append(item)
                elif check_strings and isinstance(item, str):
                    _require_text((item,))
        if not below:
            return
        level = below
    raise RequestError(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _require_text(strings: Any) -> None:
    try:
        for text in strings:
            text.encode()
    except UnicodeEncodeError:
        raise RequestError("The body has a \\u escape that is half a character.") from None
