"""Showing settings: the help text, the table of the documentation, and `octavo config show`."""

from __future__ import annotations

import textwrap
from itertools import groupby

from .declaration import Declaration
from .declared import declarations
from .sources import WITHOUT_EFFECT, Loaded

_INDENT = " " * 6


def help_text(width: int = 100) -> str:
    """Every setting by group, for `octavo serve --help`."""
    lines = []
    for group, members in groupby(declarations(), key=lambda d: d.group):
        lines += ["", f"{group}:"]
        for declared in members:
            lines.append("  " + ", ".join(_flags(declared)))
            text = f"{declared.help} [default: {declared.show(declared.default) or 'unset'}]"
            lines += textwrap.wrap(text, width, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return "\n".join(lines)


def markdown() -> str:
    """The table of all settings for the documentation."""
    lines = ["| flag | variable | default | what it decides |", "|---|---|---|---|"]
    for declared in declarations():
        flags = "<br>".join(f"`{flag}`" for flag in _flags(declared)).replace("|", "\\|")
        default = declared.show(declared.default)
        cells = (flags, f"`{declared.variable}`", default and f"`{default}`", declared.help)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Taken, so that command lines for vLLM work, and without effect:", ""]
    lines += [f"- `--{name}`: {why}" for name, (_, why) in WITHOUT_EFFECT.items()]
    return "\n".join(lines) + "\n"


def table(loaded: Loaded) -> str:
    """Every value and where it came from, aligned."""
    rows = [
        (
            declared.key,
            declared.show(getattr(loaded.settings, declared.name)) or "(unset)",
            loaded.origins[declared.name],
        )
        for declared in declarations()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(
        f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for key, value, origin in rows
    )


def _flags(declared: Declaration) -> list[str]:
    if declared.kind.is_switch:
        names = [f"{declared.flag}, --no-{declared.key}"]
        return names + [f"--{alias}, --no-{alias}" for alias in declared.aliases]
    return [
        f"--{spelling} {declared.kind.metavar}" for spelling in (declared.key, *declared.aliases)
    ]
