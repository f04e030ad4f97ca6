"""GET /v1/models and /v1/models/{id}; POST /tokenize and /detokenize; GET /tokenizer_info."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo.engine.errors import InvalidParameter

from .answers import Detokenized, ModelEntry, ModelList, ModelPermission, Tokenized
from .conversation import encode_messages, template_for, template_options
from .desk import Desk, answer
from .errors import UnknownModel
from .params import context_of, model_named
from .prompts import MAX_CHARACTERS, check_ids, check_length
from .schema import DetokenizeRequest, TokenizeRequest

if TYPE_CHECKING:
    from ..models import ServedModel


class Models:
    """The endpoints that tell of models and their tokenizers."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list_all(self, request: Request) -> Response:
        """All served models, each name an entry."""
        del request
        entries = [_entry(model, name) for model in self._desk.models for name in model.names]
        return answer(ModelList(data=entries))

    async def show(self, request: Request) -> Response:
        """One served model; its name may contain slashes."""
        name = request.path_params["model"]
        model = self._desk.models.get(name)
        if model is None:
            raise UnknownModel(f"There is no model {name!r} here.", param="model")
        return answer(_entry(model, name))

    async def tokenize(self, request: Request) -> Response:
        """Token ids of a text, or of messages put through the chat template."""
        body, raw, size = await self._desk.read(request, TokenizeRequest)
        model = model_named(self._desk.models, body.model)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidParameter("Either prompt or messages is needed.", param="prompt")
        if body.messages is not None:
            ids = await self._tokenized_messages(body, raw["messages"], model, size)
        else:
            special = True if body.add_special_tokens is None else body.add_special_tokens
            text = body.prompt or ""
            if len(text) > MAX_CHARACTERS:
                check_length(text, model, context_of(model), "prompt")
            ids = await self._desk.threads.run(
                lambda: model.tokenizer.encode(
                    text, add_special_tokens=special, parse_special=True
                ),
                size=size,
            )

        def whole() -> Response:
            names = [model.tokenizer.token_text(i) for i in ids] if body.return_token_strs else None
            return answer(
                Tokenized(
                    count=len(ids), max_model_len=model.max_model_len, tokens=ids, token_strs=names
                )
            )

        return await self._desk.threads.run(whole, size=len(ids))

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids, control tokens written out."""
        body, _, size = await self._desk.read(request, DetokenizeRequest)
        model = model_named(self._desk.models, body.model)
        check_ids(body.tokens, model.config.vocab_size, "tokens")
        tokens = body.tokens
        text = await self._desk.threads.run(
            lambda: model.tokenizer.decode(tokens, skip_special_tokens=False), size=size
        )
        return answer(Detokenized(prompt=text))

    async def tokenizer_info(self, request: Request) -> Response:
        """tokenizer_config.json; its special tokens are plain strings."""
        del request
        model = model_named(self._desk.models, None)
        content = {**model.tokenizer.config, **model.tokenizer.special_tokens}
        content.setdefault("eos_token", None)
        return Response(msgspec.json.encode(content), media_type="application/json")

    async def _tokenized_messages(
        self, body: TokenizeRequest, raw: list[dict[str, object]], model: ServedModel, size: int
    ) -> list[int]:
        trusted = self._desk.settings.trust_request_chat_template
        return await encode_messages(
            self._desk,
            body,
            raw,
            model=model,
            template=template_for(model, body.chat_template, trusted=trusted),
            size=size,
            options=template_options(body, tools=body.tools),
        )


def _entry(model: ServedModel, name: str) -> ModelEntry:
    return ModelEntry(
        id=name,
        created=model.created,
        root=model.name,
        max_model_len=model.max_model_len,
        permission=[ModelPermission(id=f"modelperm-{name}", created=model.created)],
    )
