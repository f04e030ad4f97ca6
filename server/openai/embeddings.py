"""POST /v1/embeddings (API contract, section 1): prompts to vectors.

A prompt's embedding is pooled from the model's final hidden states: the mean of all positions, or
that of the last one. OpenAI's form, and as ours `pooling`, `normalize`, `add_special_tokens`,
`truncate_prompt_tokens`, `priority` and `cache_salt`.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from octavo.engine.errors import ContextLengthExceeded, InvalidParameter
from octavo.engine.params import PoolingKind, PoolingParams, SamplingParams

from ..generation import Job, TextDelta
from .desk import Desk, Visit, answer
from .params import context_of, model_named
from .prompts import check_choices, listed_prompts, prompt_ids
from .schema import Positive, Prompt, TimedRequest

if TYPE_CHECKING:
    from ..models import ServedModel


class EmbeddingRequest(TimedRequest, kw_only=True):
    """POST /v1/embeddings."""

    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None  # the first so many numbers, normalised again
    user: str | None = None

    # Beyond OpenAI.
    pooling: Literal["mean", "last"] | None = None  # default: mean
    normalize: bool | None = None  # to an L2 norm of 1; default: true
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Positive | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=128)] | None = None


class EmbeddingEntry(Struct, kw_only=True):
    """One vector; as a string: base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Struct, kw_only=True):
    """Nothing is generated: both are the tokens of the prompts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct, kw_only=True):
    """The answer of /v1/embeddings, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[EmbeddingEntry]
    model: str
    usage: EmbeddingUsage


class Embeddings:
    """The endpoint."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, request: Request) -> Response:
        """The embedding of each input."""
        return await self._desk.serve(request, EmbeddingRequest, self._answer)

    async def _answer(
        self, body: EmbeddingRequest, raw: Mapping[str, Any], visit: Visit
    ) -> Response:
        del raw
        model = model_named(self._desk.models, body.model)
        pooling = _pooling(body, model)
        self._desk.require_accepting()
        context = context_of(model)
        prompts = await self._desk.threads.run(
            lambda: _prompts(body, model, context), size=visit.size
        )
        visit.permit.weigh(prompts)
        job = Job(
            id=f"embd-{visit.tally.id}",
            permit=visit.permit,
            model=model,
            prompts=prompts,
            params=SamplingParams(max_tokens=0),
            pooling=pooling,
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
        )
        vectors = await _gather(self._desk.generation.stream(job, visit.tally), len(prompts))

        def whole() -> Response:
            encoded = _base64 if body.encoding_format == "base64" else _numbers
            total = sum(map(len, prompts))
            return answer(
                EmbeddingList(
                    data=[
                        EmbeddingEntry(index=index, embedding=encoded(vector))
                        for index, vector in enumerate(vectors)
                    ],
                    model=body.model or model.name,
                    usage=EmbeddingUsage(prompt_tokens=total, total_tokens=total),
                )
            )

        return await self._desk.threads.run(whole, size=sum(map(len, vectors)))


def _prompts(body: EmbeddingRequest, model: ServedModel, context: int) -> list[Sequence[int]]:
    """Token ids of each input.

    Raises:
        RequestError: one is empty, too long, or has ids that are none of the model's.
    """
    listed = listed_prompts(body.input, "input")
    check_choices(len(listed), 1, "input")
    prompts: list[Sequence[int]] = []
    for item in listed:
        if not item:
            raise InvalidParameter("input: one is empty.", param="input")
        ids = prompt_ids(item, body, model, context, "input")
        if len(ids) > context:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {context} tokens, but an input has "
                f"{len(ids)}.",
                param="input",
            )
        prompts.append(ids)
    return prompts


def _pooling(body: EmbeddingRequest, model: ServedModel) -> PoolingParams:
    """Raises InvalidParameter: more dimensions are wanted than there are."""
    size = model.config.hidden_size
    if body.dimensions is not None and body.dimensions > size:
        raise InvalidParameter(
            f"dimensions must be at most {size}, the size of this model's hidden states, but it "
            f"is {body.dimensions}.",
            param="dimensions",
        )
    return PoolingParams(
        kind=PoolingKind(body.pooling or PoolingKind.MEAN),
        dimensions=body.dimensions,
        normalize=True if body.normalize is None else body.normalize,
    )


async def _gather(deltas: AsyncIterable[TextDelta], count: int) -> list[bytes]:
    """The vectors by input, as little-endian float32: a quarter of the memory of Python's floats,
    and what a client reads is the same in both encodings."""
    vectors = [b""] * count
    async for delta in deltas:
        vectors[delta.index] = struct.pack(f"<{len(delta.embedding)}f", *delta.embedding)
    return vectors


def _numbers(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()
