"""Where values come from: flags over variables over the file over defaults."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.engine.errors import ConfigError

from .declaration import VARIABLE_PREFIX, Declaration
from .declared import Settings, declarations

# Flags of vLLM that ask for what octavo does anyway, or has no need of: (takes a value, why).
WITHOUT_EFFECT = {
    "enable-chunked-prefill": (False, "long prompts are always computed in chunks"),
    "trust-remote-code": (False, "octavo never runs code from a checkpoint"),
    "seed": (True, "sampling is seeded per request"),
    "tokenizer-mode": (True, "there is one tokenizer"),
}
# A Kubernetes service called "octavo" puts such variables into every container beside it.
_SERVICE_LINK = re.compile(r"OCTAVO_(SERVICE_(HOST|PORT.*)|PORT_\d+_(TCP|UDP).*)")
_CONFIG_KEY = "config"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, where each came from, and remarks for the operator."""

    settings: Settings
    origins: Mapping[str, str]  # field -> flag, variable, file, or "default"
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Source:
    """Raw values of one kind of source, by field."""

    values: dict[str, Any] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)  # field -> how the operator wrote it
    notes: list[str] = field(default_factory=list)
    config: str | None = None

    def put(self, declared: Declaration, value: Any, spelled: str) -> None:
        if declared.kind.many and declared.name in self.values:
            value = f"{self.values[declared.name]},{value}"
        self.values[declared.name] = value
        self.spelled[declared.name] = spelled


def merge(arguments: Sequence[str], environment: Mapping[str, str]) -> Loaded:
    """Settings from command-line words, variables, and the file that one of them names.

    Raises:
        ConfigError: an unknown name (with the nearest known one) or a value out of its limits.
    """
    flags = _read_flags(arguments)
    variables = _read_variables(environment)
    path = flags.config or variables.config
    file = _read_file(Path(path)) if path is not None else _Source()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for declared in declarations():
        origins[declared.name] = "default"
        for source in (flags, variables, file):
            if declared.name in source.values:
                origins[declared.name] = source.spelled[declared.name]
                values[declared.name] = _checked(
                    declared, source.values[declared.name], origins[declared.name]
                )
                break
    notes = (*flags.notes, *variables.notes, *file.notes)
    return Loaded(Settings(**values), origins, notes)


def _checked(declared: Declaration, raw: Any, origin: str) -> Any:
    try:
        return declared.kind.read(raw)
    except ValueError as error:
        shown = "what it was given" if declared.secret else repr(raw)
        raise ConfigError(f"{origin} {error}, but it is {shown}.") from None


def _read_flags(arguments: Sequence[str]) -> _Source:
    source = _Source()
    known = {spelling: d for d in declarations() for spelling in (d.key, *d.aliases)}
    words = list(arguments)
    extended: Declaration | None = None  # a list flag whose further values may follow it
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            _put_bare(source, word, extended)
            continue
        extended = None
        spelled, equals, value = word.partition("=")
        name = spelled.lstrip("-").replace("_", "-")
        negated = name.startswith("no-") and name not in known
        declared = known.get(name[3:] if negated else name)
        if name == _CONFIG_KEY:
            source.config = value if equals else _next(words, spelled)
        elif declared is None:
            _put_without_effect(source, name, spelled, words, has_value=bool(equals))
        elif declared.kind.is_switch:
            given = _checked(declared, value, spelled) if equals else True
            source.put(declared, given != negated, spelled)
        elif negated:
            raise ConfigError(f"There is no flag {spelled}; {declared.flag} takes a value.")
        else:
            source.put(declared, value if equals else _next(words, spelled), spelled)
            extended = declared if declared.kind.many else None
    return source


def _put_bare(source: _Source, word: str, extended: Declaration | None) -> None:
    """A word without a flag: the model, or, after it, one more value of a list flag."""
    model = next(d for d in declarations() if d.name == "model")
    if "model" not in source.values:
        source.put(model, word, "MODEL")
    elif extended is not None:
        source.put(extended, word, extended.flag)
    else:
        raise ConfigError(
            f"Unexpected word {word!r}: the model is {source.values['model']!r} already."
        )


def _put_without_effect(
    source: _Source, name: str, spelled: str, words: list[str], *, has_value: bool
) -> None:
    takes_value, why = WITHOUT_EFFECT.get(name.removeprefix("no-"), (False, ""))
    if not why:
        names = [d.flag for d in declarations()]
        names += [f"--{alias}" for d in declarations() for alias in d.aliases]
        names += [f"--no-{d.key}" for d in declarations() if d.kind.is_switch]
        raise ConfigError(_unknown("flag", spelled, [*names, f"--{_CONFIG_KEY}"]))
    if takes_value and not has_value:
        _next(words, spelled)
    source.notes.append(f"{spelled} has no effect: {why}.")


def _next(words: list[str], flag: str) -> str:
    if not words or words[0].startswith("--"):
        raise ConfigError(f"{flag} needs a value.")
    return words.pop(0)


def _read_variables(environment: Mapping[str, str]) -> _Source:
    source = _Source()
    known = {d.variable: d for d in declarations()}
    for variable, value in environment.items():
        if not variable.startswith(VARIABLE_PREFIX):
            continue
        if variable == VARIABLE_PREFIX + _CONFIG_KEY.upper():
            source.config = value or None
        elif value.startswith(("tcp://", "udp://")) or _SERVICE_LINK.fullmatch(variable):
            source.notes.append(f"{variable} is a Kubernetes service link and is not read.")
        elif variable in known:
            if value:  # set but empty is how shells and compose files say "unset"
                source.put(known[variable], value, variable)
        else:  # not fatal: other programs may share the prefix
            source.notes.append(_unknown("variable", variable, known))
    return source


def _read_file(path: Path) -> _Source:
    import yaml

    source = _Source()
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not valid YAML: {_where(error)}.") from None
    if content is None:
        return source
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} should hold `key: value` lines.")
    known = {spelling: d for d in declarations() for spelling in (d.key, *d.aliases)}
    for key, value in content.items():
        declared = known.get(str(key).replace("_", "-"))
        if declared is None:
            raise ConfigError(f"In {path}: " + _unknown("key", str(key), known))
        source.put(declared, value, f"{path}: {key}")
    return source


def _where(error: Exception) -> str:
    """A YAML error on one line: those with a place in the file print a drawing of it."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1} column {mark.column + 1}: {problem}"


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]}?" if near else "`octavo serve --help` lists them all."
    return f"There is no {what} {name}; {hint}"
