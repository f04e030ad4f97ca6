"""langchain-openai: chat, stream, batch, completion, structured output, tools, embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import cases
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

TOKENIZER = str(Path(__file__).parents[3] / "engine" / "bundled" / "target")
STORY = [SystemMessage("You tell stories."), HumanMessage("Tell me a story about a fox.")]


def model(url: str, **options: Any) -> ChatOpenAI:
    options = {"temperature": 0, "max_tokens": 24, **options}
    return ChatOpenAI(model="octavo", base_url=f"{url}/v1", **options)


def chat(url: str) -> dict[str, Any]:
    whole_length = {"extra_body": {"ignore_eos": True}}
    plain = model(url, **whole_length).invoke(STORY)
    chunks = list(model(url, stream_usage=True, **whole_length).stream(STORY))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return {
        "plain": plain.content,
        "joined": whole.content,
        "chunks": len(chunks),
        "plain_usage": _counts(plain),
        "usage": _counts(whole),
        "finish_reason": plain.response_metadata["finish_reason"],
        "model": plain.response_metadata["model_name"],
    }


def _counts(message: Any) -> list[int]:
    usage = message.usage_metadata
    return [usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]]


async def batch(url: str) -> dict[str, Any]:
    questions = ["A fox.", "A king.", "A bear."]
    alone = [(await model(url).ainvoke(question)).content for question in questions]
    together = [answer.content for answer in await model(url).abatch(questions)]
    return {"alone": alone, "together": together}


def scores(url: str) -> int:
    message = model(url, max_tokens=5).bind(logprobs=True, top_logprobs=2).invoke(STORY)
    return len(message.response_metadata["logprobs"]["content"])


def text(url: str) -> dict[str, Any]:
    writer = OpenAI(model="octavo", base_url=f"{url}/v1", temperature=0, max_tokens=16)
    prompt = "Once upon a time"
    return {"plain": writer.invoke(prompt), "joined": "".join(writer.stream(prompt))}


class Animal(BaseModel):
    """An animal."""

    kind: Literal["fox", "bear", "wolf"]
    hungry: bool


@tool
def weather(city: Literal["Rome", "Oslo"], days: Literal[1, 2, 3]) -> str:
    """The weather of a city."""
    return f"{city}, {days}: rain"


def structured(url: str) -> dict[str, Any]:
    """By two of its methods; langchain itself makes the schema, strict for the first."""
    told = {}
    for method in ("json_schema", "function_calling"):
        options: dict[str, Any] = {"method": method}
        if method == "json_schema":
            options["strict"] = True
        asked = model(url, max_tokens=200).with_structured_output(Animal, **options)
        told[method] = asked.invoke(STORY).model_dump()
    return told


def tools(url: str) -> dict[str, Any]:
    """A forced call, its result handed back."""
    forced = model(url, max_tokens=200).bind_tools([weather], tool_choice="weather")
    called: AIMessage = forced.invoke(STORY)
    (call,) = called.tool_calls
    result: ToolMessage = weather.invoke(call)
    after = model(url).bind_tools([weather], tool_choice="none").invoke([*STORY, called, result])
    return {"call": call, "result": result.content, "after": after.tool_calls}


def embeddings(url: str) -> list[int]:
    """It sends lists of token ids, or texts where told to."""
    sizes = []
    for check in (True, False):
        embedder = OpenAIEmbeddings(
            model="octavo",
            base_url=f"{url}/v1",
            check_embedding_ctx_length=check,
            tiktoken_enabled=False,
            tiktoken_model_name=TOKENIZER,
        )
        sizes += [len(vector) for vector in embedder.embed_documents(["A fox.", "A king."])]
    return sizes


if __name__ == "__main__":
    cases.run(chat, batch, scores, text, structured, tools, embeddings)
