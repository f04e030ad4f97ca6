"""A request's prompts as token ids, none of them too long (API contract, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from octavo.engine.errors import ContextLengthExceeded, InvalidParameter

if TYPE_CHECKING:
    from ..models import ServedModel
    from .schema import Prompt

# Of a text that is tokenized though it may be too long for the model. Some 150 bytes of memory are
# needed for each, and a second for a million.
MAX_CHARACTERS = 4 << 20
MAX_CHOICES = 16_384  # of one request: what is remembered of it grows with their number


def listed_prompts(given: Prompt, param: str) -> list[str | list[int]]:
    """Each prompt, a text or token ids. Raises InvalidParameter: none, or texts and ids mixed."""
    listed: list[str | list[int]]
    if isinstance(given, str) or (given and all(isinstance(item, int) for item in given)):
        listed = [given]  # type: ignore[list-item]
    else:
        listed = given  # type: ignore[assignment]
    kinds = {type(item) for item in listed}
    if len(kinds) != 1 or not kinds <= {str, list}:
        raise InvalidParameter(
            f"{param} must be a text, a list of texts, a list of token ids, or a list of such "
            f"lists.",
            param=param,
        )
    return listed


class PromptOptions(Protocol):
    """How a request wants its prompts read."""

    add_special_tokens: bool | None
    truncate_prompt_tokens: int | None


def prompt_ids(
    prompt: str | list[int], options: PromptOptions, model: ServedModel, context: int, param: str
) -> list[int]:
    """Token ids of one prompt.

    Raises:
        InvalidParameter: it has no tokens, or ids that are none of the model's.
        ContextLengthExceeded: it is a text far too long; of one that comes near, the caller sees.
    """
    if isinstance(prompt, str):
        if options.truncate_prompt_tokens is None or len(prompt) > MAX_CHARACTERS:
            check_length(prompt, model, context, param)
        special = True if options.add_special_tokens is None else options.add_special_tokens
        ids = model.tokenizer.encode(prompt, add_special_tokens=special, parse_special=True)
    else:
        check_ids(prompt, model.config.vocab_size, param)
        ids = prompt
    ids = keep_last(ids, options.truncate_prompt_tokens)
    if not ids:
        raise InvalidParameter(f"{param}: one has no tokens.", param=param)
    return ids


def keep_last(ids: list[int], count: int | None) -> list[int]:
    """truncate_prompt_tokens."""
    return ids if count is None else ids[-count:]


def check_ids(ids: Sequence[int], vocabulary: int, param: str) -> None:
    """Raises InvalidParameter: an id is none of the model's."""
    if ids and not (min(ids) >= 0 and max(ids) < vocabulary):
        wrong = next(i for i in ids if not 0 <= i < vocabulary)
        raise InvalidParameter(
            f"{param}: {wrong} is not a token id; they are 0 to {vocabulary - 1}.", param=param
        )


def check_length(text: str, model: ServedModel, context: int, param: str) -> None:
    """Raises ContextLengthExceeded: no need to tokenize `text` to see that it is too long."""
    fewest = model.tokenizer.fewest_tokens(text)
    if fewest > context:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context} tokens, but {len(text)} characters "
            f"are at least {fewest}.",
            param=param,
        )


def check_context(prompt: Sequence[int], max_tokens: int | None, context: int, param: str) -> None:
    """Raises ContextLengthExceeded: prompt and output do not fit, and nothing is cut silently."""
    wanted = 1 if max_tokens is None else max_tokens
    # One position more than the prompt is needed even where no output is wanted.
    if len(prompt) + max(wanted, 1) > context:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context} tokens, but {len(prompt)} in the "
            f"prompt and {wanted} in the completion are {len(prompt) + wanted}.",
            param=param,
        )


def check_choices(prompts: int, each: int, param: str) -> None:
    """Raises InvalidParameter: more choices are asked for than one request may have."""
    if prompts * each > MAX_CHOICES:
        raise InvalidParameter(
            f"{param}: {prompts} times {each} are more than the {MAX_CHOICES} choices that one "
            f"request may ask for; send several requests.",
            param=param,
        )
