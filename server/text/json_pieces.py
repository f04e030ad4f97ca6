"""`CallReader`: reads `{"name": ..., "arguments": {...}}` character by character."""

from __future__ import annotations

import json
from enum import Enum, auto

_SPACE = " \t\r\n"


class NotACall(Exception):
    """The text is no such object; `used` characters of the piece at hand were still right."""

    def __init__(self, used: int) -> None:
        super().__init__(used)
        self.used = used


class _At(Enum):
    OBJECT = auto()  # before the opening brace
    FIRST_KEY = auto()  # or the closing brace
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    COMMA = auto()  # or the closing brace
    END = auto()


class CallReader:
    """One call. The members may come in any order; unknown ones are passed over.

    Args:
        arguments: key of the arguments; `arguments` and `parameters` are known in any case.
    """

    def __init__(self, arguments: str = "arguments") -> None:
        self._keys = frozenset((arguments, "arguments", "parameters"))
        self._at = _At.OBJECT
        self._key = ""
        self._value: _Value | None = None
        self._arguments: list[str] | None = None  # known, not yet taken; None: there were none
        self.name: str | None = None

    @property
    def done(self) -> bool:
        return self._at is _At.END

    def take_arguments(self) -> str:
        """The JSON text of the arguments that is new since the last call."""
        if self._arguments is None:
            return "{}" if self.done and self._close_arguments() else ""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def feed(self, text: str) -> int:
        """How many characters belong to the call: all, or those up to its closing brace.

        Raises:
            NotACall: the text is something else.
        """
        place = 0
        while place < len(text) and not self.done:
            if self._value is not None:
                place += self._read_value(text[place:])
            elif text[place] in _SPACE or self._read_mark(text[place]):
                place += 1
            elif self._value is None:
                raise NotACall(place)
        return place

    def _close_arguments(self) -> bool:
        self._arguments = []
        return True

    def _read_mark(self, mark: str) -> bool:
        """One character between values; False where it begins a value or is out of place."""
        match self._at, mark:
            case _At.OBJECT, "{":
                self._at = _At.FIRST_KEY
            case ((_At.FIRST_KEY | _At.COMMA), "}"):
                self._at = _At.END
            case ((_At.FIRST_KEY | _At.KEY), '"'):
                self._value = _Value(mark)
                return False
            case _At.COLON, ":":
                self._at = _At.VALUE
            case _At.COMMA, ",":
                self._at = _At.KEY
            case _At.VALUE, _ if mark not in ",:]}":
                self._value = _Value(mark)
                return False
            case _:
                return False
        return True

    def _read_value(self, text: str) -> int:
        value = self._value
        assert value is not None, "a value has begun"
        used = value.feed(text)
        streams = self._at is _At.VALUE and self._key in self._keys and value.kind == "{"
        if streams:
            self._add_arguments(value.take())
        if value.complete:
            self._value = None
            self._keep(value.take(), streamed=streams)
        return used

    def _keep(self, text: str, *, streamed: bool) -> None:
        if self._at is not _At.VALUE:
            self._key = str(_decoded(text))
            self._at = _At.COLON
            return
        self._at = _At.COMMA
        if self._key == "name":
            name = _decoded(text)
            self.name = name if isinstance(name, str) else None
        elif self._key in self._keys and not streamed:
            # Some models write the object as a string, or null for none.
            value = _decoded(text)
            self._add_arguments(
                value if isinstance(value, str) else "{}" if value is None else text
            )

    def _add_arguments(self, text: str) -> None:
        if self._arguments is None:
            self._arguments = []
        self._arguments.append(text)


class _Value:
    """One JSON value, found by its brackets and quotes; `kind` is its first character."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.complete = False
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self._text: list[str] = []

    def take(self) -> str:
        text = "".join(self._text)
        self._text.clear()
        return text

    def feed(self, text: str) -> int:
        """How many characters belong to the value."""
        for place, character in enumerate(text):
            if self._ends_before(character):
                self.complete = True
                break
            self._pass(character)
            if self.complete:
                place += 1
                break
        else:
            place = len(text)
        self._text.append(text[:place])
        return place

    def _ends_before(self, character: str) -> bool:
        """Numbers, true, false and null end with what follows them."""
        return self.kind not in '"{[' and character in ",]}" + _SPACE

    def _pass(self, character: str) -> None:
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._quoted = False
                self.complete = self._depth == 0
        elif character == '"':
            self._quoted = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.complete = self._depth == 0


def _decoded(text: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
