"""What a request obliges its answer to be, proven to be possible before the engine hears of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from octavo.engine.errors import InvalidParameter
from octavo.engine.params import GrammarKind, GrammarSpec

from ..text.message import Manner
from ..text.reasoning import ReasoningTags
from ..text.tool_families import ToolFamily
from ..text.tools import ToolMode, ToolUse, read_tools, tool_grammar
from .structured import Structure, read_structure

if TYPE_CHECKING:
    from ..models import ServedModel
    from ..text.grammar_check import GrammarCheck
    from ..text.template import ChatTemplate


@dataclass(frozen=True, slots=True, kw_only=True)
class Obligation:
    """What a request says of its answer's form: a structure, or calls, or either of the two."""

    structure: Structure | None = None
    use: ToolUse | None = None
    family: ToolFamily | None = None  # how the model writes calls, where it may make any

    @property
    def tools(self) -> list[Mapping[str, Any]] | None:
        """For the chat template."""
        return None if self.use is None else list(self.use.entries)


def read_obligation(
    raw: Mapping[str, Any], model: ServedModel, template: ChatTemplate | None = None
) -> Obligation:
    """From a request's body; takes time where there is much to read.

    Args:
        template: what tools are shown to the model with; None: the endpoint has no tools.

    Raises:
        InvalidParameter: it asks for what is unknown, incomplete or contradictory.
    """
    structure = read_structure(raw, model.tokenizer.token_id)
    use = read_tools(raw) if template is not None else None
    if template is None or use is None or use.mode is ToolMode.NONE:
        return Obligation(structure=structure, use=use)
    family = ToolFamily.of(template.text, model.tokenizer)
    # Where nothing but its JSON tells a call, no grammar can tell it from an answer.
    bindable = structure is None or (
        structure.spec.kind is GrammarKind.JSON_SCHEMA and not family.bare
    )
    if use.mode is ToolMode.AUTO and not bindable:
        raise InvalidParameter(
            "tools: the form of this model's answer cannot be bound so where it may be a "
            "call; leave one out, or set tool_choice to none or required.",
            param="tools",
        )
    return Obligation(structure=structure, use=use, family=family)


def manner_of(
    obligation: Obligation, model: ServedModel, template: ChatTemplate, prompt: Sequence[int]
) -> Manner:
    """How the answers to a conversation are to be read."""
    tags = ReasoningTags.of(template.text, model.tokenizer)
    end = prompt[-_TAG_TOKENS:]
    opened = tags is not None and tags.opened_by(
        model.tokenizer.decode(end, skip_special_tokens=False)
    )
    use, family = obligation.use, obligation.family
    names = use.names if use is not None else frozenset()
    return Manner(tags=tags, opened=opened, family=family, names=names)


_PLAIN = Manner()
_TAG_TOKENS = 16  # at the prompt's end, more than any opening tag has


async def answer_grammar(
    obligation: Obligation, model: ServedModel, check: GrammarCheck, manner: Manner = _PLAIN
) -> GrammarSpec | None:
    """What the engine is to hold the answer to; None where it is free.

    Where the model thinks before it answers, its thinking is free.

    Raises:
        InvalidParameter: it cannot be enforced; names the place.
    """
    found = await _grammar(obligation, check)
    if found is None:
        return None
    if not model.config.eos_token_ids:
        raise InvalidParameter(
            f"{found.path}: {model.name} has no end-of-sequence token, without which an answer "
            f"cannot be constrained.",
            param=found.path,
        )
    if manner.tags is None:
        return found.spec
    lead = manner.tags.before_answer(opened=manner.opened)
    return await check.check(replace(found.spec, lead=lead), found.path)


async def _grammar(obligation: Obligation, check: GrammarCheck) -> Structure | None:
    structure, use, family = obligation.structure, obligation.use, obligation.family
    if structure is not None:
        structure = Structure(await check.check(structure.spec, structure.path), structure.path)
    if use is None or family is None:
        return structure
    # One by one, so that a refusal names the tool.
    for tool in use.callable:
        await check.check(GrammarSpec(GrammarKind.JSON_SCHEMA, tool.schema), tool.path)
    answer = None if structure is None else structure.spec.text
    spec = tool_grammar(use, family, answer=answer)
    return None if spec is None else Structure(await check.check(spec, "tools"), "tools")
