"""`Turn`: a conversation made ready to be answered, whichever endpoint it came through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from octavo.engine.errors import InvalidParameter

from ..generation import Job
from ..text.message import Manner
from .constraints import answer_grammar, manner_of, read_obligation
from .conversation import encode_messages, template_for, template_options
from .params import Scores, chat_max_tokens, context_of, model_named, sampling_params
from .prompts import check_context, keep_last

if TYPE_CHECKING:
    from ..models import ServedModel
    from .desk import Desk, Visit
    from .schema import ChatRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the model is to generate, and how that is to be read."""

    job: Job
    scores: Scores
    manner: Manner


async def prepare_turn(
    desk: Desk, body: ChatRequest, raw: Mapping[str, Any], *, answer_id: str, visit: Visit
) -> Turn:
    """Everything that can be wrong with a conversation is found here.

    Args:
        raw: the body as it came, with what only templates and grammars know.

    Raises:
        RequestError: the client's to mend.
        EngineDead: it can be neither served nor wait for a restart.
        Overloaded: with its prompt too much would wait.
    """
    model = model_named(desk.models, body.model)
    scores = Scores(output=_top_logprobs(body), prompt=body.prompt_logprobs)
    max_tokens = chat_max_tokens(body, model)
    params = sampling_params(body, model, max_tokens=max_tokens, scores=scores)
    if any(kind != "text" for kind in body.modalities or ()):
        raise InvalidParameter("modalities: only 'text' is offered.", param="modalities")
    trusted = desk.settings.trust_request_chat_template
    template = template_for(model, body.chat_template, trusted=trusted)
    obligation = await desk.threads.run(
        lambda: read_obligation(raw, model, template), size=visit.size
    )
    options = template_options(
        body,
        effort=body.reasoning_effort,
        documents=body.documents,
        tools=obligation.tools,
    )
    desk.require_accepting()
    context = context_of(model)
    rendered = await encode_messages(
        desk,
        body,
        raw["messages"],
        model=model,
        template=template,
        size=visit.size,
        longest=context if body.truncate_prompt_tokens is None else None,
        options=options,
    )
    prompt = _framed(rendered, body, model)
    check_context(prompt, max_tokens, context, "messages")
    visit.permit.weigh([prompt])
    manner = manner_of(obligation, model, template, prompt)
    if grammar := await answer_grammar(obligation, model, desk.check_of(model), manner):
        params = replace(params, grammar=grammar)
    job = Job(
        id=answer_id,
        permit=visit.permit,
        model=model,
        prompts=[prompt],
        params=params,
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
    )
    return Turn(job=job, scores=scores, manner=manner)


def _top_logprobs(body: ChatRequest) -> int | None:
    """How many alternatives are wanted; None: no log-probabilities at all."""
    if not body.logprobs:
        if body.top_logprobs:
            raise InvalidParameter("top_logprobs needs logprobs.", param="top_logprobs")
        return None
    return body.top_logprobs or 0


def _framed(prompt: list[int], body: ChatRequest, model: ServedModel) -> Sequence[int]:
    """The prompt with what the request wants changed at its ends."""
    first = model.tokenizer.bos_token_id
    if body.add_special_tokens and first is not None and prompt[:1] != [first]:
        prompt = [first, *prompt]
    prompt = keep_last(prompt, body.truncate_prompt_tokens)
    if not prompt:
        raise InvalidParameter("messages: the template makes nothing of them.", param="messages")
    return prompt
