"""`Declaration`: what is known of a setting before it has a value, and all its names.

One declaration gives the flag (`--max-model-len`), the variable (`OCTAVO_MAX_MODEL_LEN`), the key
of the YAML file (`max-model-len`), the help text and the check.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .kinds import Kind

VARIABLE_PREFIX = "OCTAVO_"


@dataclass(frozen=True, slots=True)
class Declaration:
    """Of one setting."""

    name: str  # the field of Settings
    kind: Kind
    default: Any
    group: str
    help: str
    aliases: tuple[str, ...]  # other flags, as operators of vLLM type them
    secret: bool

    @property
    def key(self) -> str:
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        return f"--{self.key}"

    @property
    def variable(self) -> str:
        return VARIABLE_PREFIX + self.name.upper()

    def show(self, value: Any) -> str:
        """The value as it could be typed; of a secret only whether there is one."""
        if self.secret:
            return "(set)" if value else "(none)"
        return self.kind.show(value)


def setting(
    kind: Kind,
    default: Any,
    group: str,
    help: str,
    *,
    aliases: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """A field of `Settings`; `Declaration` says what is what."""
    declared = {
        "kind": kind,
        "default": default,
        "group": group,
        "help": help,
        "aliases": aliases,
        "secret": secret,
    }
    return field(default=default, metadata=declared, repr=not secret)
