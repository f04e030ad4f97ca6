"""Seeded malformed requests: valid ones, damaged in their values, in their text, or in their head.

    for attack in attacks(seed=1, count=10_000): ...

The same seed gives the same attacks. Each is a whole HTTP request, after which the connection ends.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .bodies import BODIES

HOST = b"127.0.0.1"
_HUGE = (2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**40, 1e308, -1e308, 5e-324, -1, 0, 0.5, 10**300)
_STRANGE = ("", " ", "\x00", "\u2028", "\ufeff", "😀" * 50, "a" * 20_000, "<|im_end|>", "../../etc",
            "{{ 7 * 7 }}", "%s%n", "\x1b[31m", "null", "1", "-", "\ufdd0\ufdd1")  # fmt: skip
_ODD_JSON = (b"NaN", b"-Infinity", b"1e999", b"-0", b"9" * 400, b"9" * 6000, b'"\\ud800"',
             b'"\\udc00\\ud800"', b"01", b"+1", b".5", b"0x10", b"'a'", b"undefined", b'"\xff\xfe"',
             b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\x01"', b"[" * 5000, b'{"a":' * 500,
             b"true false", b'"\\u00"', b"/**/1", b"\xef\xbb\xbf1")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attack:
    """`note` says how it was made, so that a failure can be understood."""

    note: str
    data: bytes
    silent: bool = False  # the server may close the connection without an answer


def attacks(*, seed: int, count: int) -> Iterator[Attack]:
    """`count` requests, all determined by `seed`."""
    rng = random.Random(seed)
    for number in range(count):
        yield _attack(rng, number)


def _attack(rng: random.Random, number: int) -> Attack:
    path = rng.choice(list(BODIES))
    body = copy.deepcopy(rng.choice(BODIES[path]))
    notes = [f"{number} {path}"]
    kind = rng.random()
    for _ in range(rng.randint(0 if kind > 0.75 else 1, 3)):
        damage = rng.choice(_IN_VALUES)
        notes.append(damage.__name__.strip("_"))
        damage(rng, body)
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "replace")
    if kind > 0.45:
        change = rng.choice(_IN_TEXT)
        notes.append(change.__name__.strip("_"))
        text = change(rng, text)
    if kind > 0.85:
        wrap = rng.choice(_IN_HEAD)
        notes.append(wrap.__name__.strip("_"))
        data, silent = wrap(rng, path.encode(), text)
    else:
        data, silent = _request(path.encode(), text), False
    return Attack(" ".join(notes), data, silent)


def _request(path: bytes, body: bytes, *headers: bytes, method: bytes = b"POST") -> bytes:
    lines = (
        method + b" " + path + b" HTTP/1.1",
        b"Host: " + HOST,
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        b"Connection: close",
        *headers,
    )
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


# --- In the values: still JSON. ------------------------------------------------------------------


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _place(rng: random.Random, body: dict[str, Any]) -> tuple[Any, Any]:
    places = list(_places(body))
    return rng.choice(places) if places else (body, "prompt")


def _other_type(rng: random.Random, body: dict[str, Any]) -> None:
    container, key = _place(rng, body)
    container[key] = rng.choice(
        [None, True, False, 0, 1, -1, 1.5, "x", [], {}, [[]], [None], {"": None}, ["a", 1], [[1]]]
    )


def _huge_number(rng: random.Random, body: dict[str, Any]) -> None:
    container, key = _place(rng, body)
    container[key] = rng.choice(_HUGE)


def _strange_text(rng: random.Random, body: dict[str, Any]) -> None:
    container, key = _place(rng, body)
    container[key] = rng.choice(_STRANGE)


def _missing(rng: random.Random, body: dict[str, Any]) -> None:
    container, key = _place(rng, body)
    if isinstance(container, dict):
        container.pop(key, None)


def _strange_key(rng: random.Random, body: dict[str, Any]) -> None:
    container, key = _place(rng, body)
    if isinstance(container, dict):
        container[rng.choice(_STRANGE)] = container.pop(key, None)


def _many(rng: random.Random, body: dict[str, Any]) -> None:
    container, key = _place(rng, body)
    item = container.get(key) if isinstance(container, dict) else 1
    most = max(2, 100_000 // len(repr(item)))  # making them must not take the attacker's time
    count = min(most, rng.choice((65, 129, 2000)))
    container[key] = [copy.deepcopy(item) for _ in range(count)]  # else later damage multiplies


def _deep(rng: random.Random, body: dict[str, Any]) -> None:
    container, key = _place(rng, body)
    value: Any = 1
    for _ in range(rng.choice((3, 100, 127, 128, 129, 500))):
        value = {"a": value} if rng.random() < 0.5 else [value]
    container[key] = value


def _from_elsewhere(rng: random.Random, body: dict[str, Any]) -> None:
    other = rng.choice(BODIES[rng.choice(list(BODIES))])
    key = rng.choice(list(other))
    body[key] = copy.deepcopy(other[key])


def _token_ids(rng: random.Random, body: dict[str, Any]) -> None:
    key = rng.choice(
        ("prompt", "input", "tokens", "stop_token_ids", "allowed_token_ids", "logit_bias")
    )
    ids = [rng.choice((-1, 0, 5, 10**6, 2**31 - 1, 2**31, 2**70)) for _ in range(3)]
    body[key] = {str(i): 1 for i in ids} if key == "logit_bias" else ids


_IN_VALUES: tuple[Callable[[random.Random, dict[str, Any]], None], ...] = (
    *(_other_type, _huge_number, _strange_text, _missing, _strange_key),
    *(_many, _deep, _from_elsewhere, _token_ids),
)


# --- In the text: mostly no JSON any more. -------------------------------------------------------


def _flipped(rng: random.Random, text: bytes) -> bytes:
    changed = bytearray(text)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _cut(rng: random.Random, text: bytes) -> bytes:
    return text[: rng.randrange(len(text))]


def _inserted(rng: random.Random, text: bytes) -> bytes:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.randbytes(rng.randint(1, 20)) + text[at:]


def _odd_value(rng: random.Random, text: bytes) -> bytes:
    colons = [i for i, byte in enumerate(text) if byte == ord(":")] or [0]
    at = rng.choice(colons) + 1
    return text[:at] + rng.choice(_ODD_JSON) + b"," + text[at:].partition(b",")[2]


def _key_twice(rng: random.Random, text: bytes) -> bytes:
    key = rng.choice((b"prompt", b"messages", b"n", b"model", b"\\u006e"))
    return b'{"%s": 1, "%s": 2, ' % (key, key) + text[1:]


def _other_encoding(rng: random.Random, text: bytes) -> bytes:
    decoded = text.decode("utf-8", "replace")
    return decoded.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")), "replace")


def _more_behind(rng: random.Random, text: bytes) -> bytes:
    return text + rng.choice((b"{}", b"\x00", b"]", b" garbage", text, b"\xff"))


def _something_else(rng: random.Random, text: bytes) -> bytes:
    del text
    return rng.choice(
        (b"", b"null", b"[]", b'"a"', b"5", b"[" * 100_000, rng.randbytes(200), b"{" * 3000,
         b'{"a":' * 3000, b"a=b&c=d", b"<xml/>", b"\x00" * 50)
    )  # fmt: skip


def _unchanged(rng: random.Random, text: bytes) -> bytes:
    del rng
    return text


_IN_TEXT: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    *(_flipped, _cut, _inserted, _odd_value, _key_twice, _other_encoding),
    *(_more_behind, _something_else, _unchanged),
)


# --- In the head: perhaps no HTTP any more. ------------------------------------------------------

Wrapped = tuple[bytes, bool]


def _media_type(rng: random.Random, path: bytes, body: bytes) -> Wrapped:
    kind = rng.choice(
        (b"text/html", b"multipart/form-data; boundary=x", b"application/json; charset=utf-16",
         b"", b"\xff\xfe", b"application/octet-stream", b"application/json" * 500)
    )  # fmt: skip
    whole = _request(path, body)
    return whole.replace(b"application/json", kind, 1), False


def _compressed(rng: random.Random, path: bytes, body: bytes) -> Wrapped:
    coding = rng.choice((b"gzip", b"br", b"deflate", b"x" * 100))
    squeezed = gzip.compress(body, mtime=0) if rng.random() < 0.5 else body
    return _request(path, squeezed, b"Content-Encoding: " + coding), False


def _odd_headers(rng: random.Random, path: bytes, body: bytes) -> Wrapped:
    odd = (
        b"X-Request-Id: \x7f\x1b[31m",
        b"X-Request-Id: " + b"a" * 10_000,
        b"X-Request-Id: a\tb c",
        b"Authorization: Bearer " + b"\xff" * 100,
        b"Authorization: Basic Og==",
        b"Origin: null\xff",
        b"Range: bytes=0-0,-1",
        b"Expect: 100-continue",
        b"Expect: 200-maybe",
        b"Upgrade: websocket\r\nConnection: upgrade",
        b"Upgrade: h2c\r\nConnection: upgrade",
        b"Host: other",
        b"X-A: " + b"a" * 100_000,
        b"\r\n".join(b"X-%d: 1" % i for i in range(500)),
        b"X-A : 1",
        b" folded: 1",
        b"no colon",
        b"X-A: \x00",
        b"X-A: 1\nX-B: 2",
        b"Content-Length: 5",
        b"Content-Length: +5",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip",
        b"Cookie: " + b"a=b; " * 500,
        b"X-Forwarded-For: \xff, 127.0.0.1",
    )
    return _request(path, body, *rng.sample(odd, rng.randint(1, 2))), False


def _chunked(rng: random.Random, path: bytes, body: bytes) -> Wrapped:
    size = rng.choice((b"%x" % len(body), b"%X;ext=1" % len(body), b"-5", b"zz", b"", b"f" * 30,
                       b"%x" % (len(body) + 3), b"0x10"))  # fmt: skip
    whole = _request(path, size + b"\r\n" + body + b"\r\n0\r\n" + b"X: 1\r\n" * 3 + b"\r\n")
    head, _, rest = whole.partition(b"\r\nContent-Length: ")
    return head + b"\r\nTransfer-Encoding: chunked\r\n" + rest.partition(b"\r\n")[2], True


def _wrong_length(rng: random.Random, path: bytes, body: bytes) -> Wrapped:
    whole = _request(path, body)
    shorter = rng.randrange(len(body)) if body else 0
    return whole.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % shorter), True


def _half_a_body(rng: random.Random, path: bytes, body: bytes) -> Wrapped:
    whole = _request(path, body)
    return whole[: len(whole) - rng.randint(0, len(body))], True


def _odd_target(rng: random.Random, path: bytes, body: bytes) -> Wrapped:
    odd = rng.choice(
        (b"/" + path, path + b"/", path + b"?" + b"a=b&" * 30, path + b"%00", path + b"%0d%0aX:1",
         path.replace(b"/", b"/./"), b"/%2e%2e" + path, path.upper(), b"*", b"http://x" + path,
         b"http://x:99999" + path, b"/\xff", b"/" + b"a" * 20_000, path + b"#frag", b"//x/y",
         path.replace(b"v", b"%76"), b"/v1/models/%ff%fe", b"/v1/models/" + b"../" * 50)
    )  # fmt: skip
    return _request(odd, body), False


def _odd_method(rng: random.Random, path: bytes, body: bytes) -> Wrapped:
    odd = rng.choice(
        (b"GET", b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"post", b"CONNECT",
         b"PROPFIND", b"FROB", b"\x00", b"GET /x HTTP/1.1\r\nA:")
    )  # fmt: skip
    return _request(path, body, method=odd), False


def _noise(rng: random.Random, path: bytes, body: bytes) -> Wrapped:
    del path
    return rng.choice((b"", b"\r\n" * 3, b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) + (
        rng.randbytes(rng.randint(0, 300)) + body[:100]
    ), True


def _flipped_head(rng: random.Random, path: bytes, body: bytes) -> Wrapped:
    whole = bytearray(_request(path, body))
    for _ in range(rng.randint(1, 3)):
        whole[rng.randrange(len(whole) - len(body))] = rng.randrange(256)
    return bytes(whole), True


_IN_HEAD: tuple[Callable[[random.Random, bytes, bytes], Wrapped], ...] = (
    *(_media_type, _compressed, _odd_headers, _chunked, _wrong_length, _half_a_body),
    *(_odd_target, _odd_method, _noise, _flipped_head),
)
