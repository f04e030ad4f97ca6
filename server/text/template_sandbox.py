"""`Sandbox`: runs chat templates, which are programs from strangers, with no way out to Python.

It keeps them from touching anything. What it cannot do is keep them from taking for ever, or all
memory: one operation of a template may be as long as its author likes. Hence the daemon has it in
a process of its own, `template_helper.py`; a library in its user's process runs it right there.
"""

from __future__ import annotations

import datetime
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
_REMEMBERED = 16  # compiled templates


class TemplateFault(Exception):
    """The template is not valid, or refuses what it is given; the message says why."""


class Sandbox:
    """Compiles and renders, and remembers what it has compiled."""

    def __init__(self) -> None:
        self._environment = _environment()
        self._compiled: OrderedDict[str, jinja2.Template] = OrderedDict()

    def parse(self, source: str) -> None:
        """Look at the template without running any of it; even compiling one may take for ever.

        Raises:
            TemplateFault: it is not valid Jinja.
        """
        try:
            self._environment.parse(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateFault(_sentence(error)) from None

    def compile(self, source: str) -> jinja2.Template:
        """Raises TemplateFault: it is not valid Jinja, or uses what there is not."""
        template = self._compiled.pop(source, None)
        if template is None:
            try:
                template = self._environment.from_string(source)
            except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
                raise TemplateFault(_sentence(error)) from None
        self._compiled[source] = template
        if len(self._compiled) > _REMEMBERED:
            self._compiled.popitem(last=False)
        return template

    def render(self, source: str, variables: Mapping[str, Any], *, longest: int) -> str:
        """What the template makes of `variables`, of at most `longest` characters.

        Raises:
            TemplateFault: it is not valid, refuses them, or makes more than that.
        """
        template = self.compile(source)
        pieces, length = [], 0
        try:
            for piece in template.generate(variables):
                pieces.append(piece)
                length += len(piece)
                if length > longest:
                    raise TemplateFault(f"it makes more than {longest} characters of them")
        except TemplateFault:
            raise
        except Exception as error:  # a template is a program: whatever it raises, it refuses
            raise TemplateFault(_sentence(error)) from None
        text = "".join(pieces)
        if _HALF_A_PAIR.search(text):
            raise TemplateFault("it writes half of a surrogate pair")
        return text


def _sentence(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`: training tools mark the assistant's words with it; here it is silent."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    """What templates on the hub are written for, without a way out of the sandbox."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationTag],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a model to read: characters as they are, nothing escaped for a browser."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
