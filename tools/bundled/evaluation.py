"""Measures an exported pair: what `eval.json` says.

    losses      mean next-token loss on the held-out stories and chats
    forms       exact match, greedy, on rule-made prompts over held-out names, cities and numbers
    agreement   how well the draft predicts the target
    passages    a few held-out texts with their losses, so that tests need no corpus
    samples     eight continuations with fixed seeds

Weights are the exported bf16 ones, arithmetic is float32, so the figures can be reproduced on any
machine.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from bundled.corpus import (
    HELD_OUT_CITIES,
    HELD_OUT_NAMES,
    TOOL_PREAMBLE,
    Message,
    is_held_out_pair,
)
from bundled.generation import generate
from bundled.model import Llama, Shape
from bundled.packing import Tokens
from bundled.training import next_token_loss
from bundled.vocabulary import BEGIN_OF_TEXT, END_OF_TEXT_ID, IM_END, IM_END_ID, chat_text

WINDOW = 512
ENDS = (END_OF_TEXT_ID, IM_END_ID)
AGREEMENT_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Form:
    """One rule-made prompt and the only right answer."""

    kind: str
    chat: list[Message]
    answer: str


@dataclass(frozen=True, slots=True)
class Sample:
    """What to ask for; `chat` false means plain continuation."""

    prompt: str
    chat: bool
    seed: int


SAMPLES = (
    Sample("Once upon a time there was", chat=False, seed=1),
    Sample('"Where are you going?" asked', chat=False, seed=2),
    Sample("The old king had three sons, and the youngest", chat=False, seed=3),
    Sample("Peter Rabbit sat up very straight and listened.", chat=False, seed=4),
    Sample("Tell me a story about a little bear.", chat=True, seed=5),
    Sample("Continue the story: The fox looked up at the tree and smiled.", chat=True, seed=6),
    Sample("Hello! Who are you?", chat=True, seed=7),
    Sample("Why are you crying?", chat=True, seed=8),
)
TEMPERATURE, TOP_P, SAMPLE_TOKENS = 0.8, 0.95, 120


def load_exported(folder: Path, shape: Shape) -> Llama:
    """An exported network, its bf16 weights widened to float32."""
    model = Llama(shape)
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    model.load_state_dict(
        {name.removeprefix("model."): value.float() for name, value in weights.items()}
    )
    return model.requires_grad_(False)


def evaluate(
    target: Llama,
    draft: Llama,
    tokenizer: Tokenizer,
    validation: dict[str, Tokens],
    passages: list[str],
) -> dict[str, Any]:
    """All figures, ready for JSON."""
    forms = list(rule_made_forms(Random(7)))
    pair = {"target": target, "draft": draft}
    return {
        "losses": {
            name: {stream: loss_and_perplexity(model, ids) for stream, ids in validation.items()}
            for name, model in pair.items()
        },
        "forms": {name: exact_matches(model, tokenizer, forms) for name, model in pair.items()},
        "agreement": {
            stream: agreement(target, draft, ids, most=AGREEMENT_TOKENS)
            for stream, ids in validation.items()
        },
        "passages": [passage_losses(pair, tokenizer, passage) for passage in passages],
        "samples": {
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            **{
                name: [sampled(model, tokenizer, s) for s in SAMPLES]
                for name, model in pair.items()
            },
        },
    }


def windows(ids: Tokens, most: int | None = None) -> Iterator[torch.Tensor]:
    """Consecutive windows of a stream, each [1, WINDOW + 1], without an incomplete last one."""
    for start in range(0, min(most or len(ids), len(ids) - 1) // WINDOW * WINDOW, WINDOW):
        yield torch.from_numpy(ids[start : start + WINDOW + 1].astype("int64"))[None]


@torch.no_grad()
def loss_and_perplexity(model: Llama, ids: Tokens) -> dict[str, float]:
    """Over all whole windows of a stream."""
    losses = [next_token_loss(model, row[:, :-1], row[:, 1:]).item() for row in windows(ids)]
    loss = sum(losses) / len(losses)
    return {
        "loss": round(loss, 4),
        "perplexity": round(math.exp(loss), 2),
        "tokens": len(losses) * WINDOW,
    }


@torch.no_grad()
def agreement(target: Llama, draft: Llama, ids: Tokens, *, most: int) -> dict[str, float]:
    """How often both would pick the same token: greedily, and when sampling at temperature 1."""
    same = overlap = count = 0.0
    for row in windows(ids, most):
        wanted, given = (
            model.logits(model(row[:, :-1])).softmax(dim=-1) for model in (target, draft)
        )
        same += (wanted.argmax(dim=-1) == given.argmax(dim=-1)).sum().item()
        overlap += torch.minimum(wanted, given).sum().item()
        count += WINDOW
    return {
        "greedy": round(same / count, 4),
        "overlap": round(overlap / count, 4),
        "tokens": int(count),
    }


@torch.no_grad()
def passage_losses(pair: dict[str, Llama], tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """The mean loss of `text` after a begin token, of each model."""
    ids = torch.tensor([tokenizer.encode(text).ids])
    losses = {
        name: round(next_token_loss(model, ids[:, :-1], ids[:, 1:]).item(), 4)
        for name, model in pair.items()
    }
    return {"text": text, "tokens": ids.shape[1], "loss": losses}


@torch.no_grad()
def exact_matches(model: Llama, tokenizer: Tokenizer, forms: list[Form]) -> dict[str, Any]:
    """How many forms of each kind the model answers exactly, decoding greedily."""
    right: dict[str, list[bool]] = {}
    for form in forms:
        right.setdefault(form.kind, []).append(answers_exactly(model, tokenizer, form))
    return {
        kind: {"right": sum(marks), "asked": len(marks)} for kind, marks in sorted(right.items())
    }


def answers_exactly(model: Llama, tokenizer: Tokenizer, form: Form) -> bool:
    """Whether greedy decoding gives the answer and then ends.

    It does if and only if every token of the answer is the likeliest one after those before it, so
    one pass over prompt and answer decides.
    """
    prompt, answer = (
        tokenizer.encode(text, add_special_tokens=False).ids
        for text in (chat_text(form.chat, prompt=True), form.answer + IM_END)
    )
    ids = torch.tensor([prompt + answer])
    likeliest = model.logits(model(ids[:, :-1]))[0, len(prompt) - 1 :].argmax(dim=-1)
    return likeliest.tolist() == answer


def sampled(model: Llama, tokenizer: Tokenizer, sample: Sample) -> dict[str, Any]:
    """One sample with the prompt it answers."""
    text = (
        chat_text([{"role": "user", "content": sample.prompt}], prompt=True)
        if sample.chat
        else BEGIN_OF_TEXT + sample.prompt
    )
    ids = generate(
        model,
        torch.tensor([tokenizer.encode(text, add_special_tokens=False).ids]),
        most=SAMPLE_TOKENS,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        seed=sample.seed,
        ends=ENDS,
    )[0].tolist()
    return {
        "prompt": sample.prompt,
        "chat": sample.chat,
        "seed": sample.seed,
        "text": decoded(tokenizer, ids),
    }


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text before the first end token."""
    end = next((index for index, token in enumerate(ids) if token in ENDS), len(ids))
    text: str = tokenizer.decode(ids[:end], skip_special_tokens=False)
    return text


# These rules repeat the phrasings of the rule-made corpus over values that training never showed.

_ANIMALS = ("duck", "lion", "goat", "deer", "crow", "frog", "pig", "toad")
_COLOURS = ("red", "blue", "green", "yellow", "white", "gray", "golden", "silver")
_THINGS = ("hat", "bell", "shoe", "apple", "basket", "rope", "ball", "stone")
_PER_KIND = 40


def rule_made_forms(random: Random) -> Iterator[Form]:
    """The same number of forms of each kind."""
    for make in (_name, _json, _weather, _alarm, _tool_sum, _tool_result, _sum, _repeat, _count):
        for _ in range(_PER_KIND):
            yield make(random)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _system(random: Random, *tools: str) -> Message:
    listed = {*tools, *random.sample(sorted(_TOOLS), 2)}
    lines = [_TOOLS[name] for name in random.sample(sorted(listed), len(listed))]
    return {"role": "system", "content": "\n".join((TOOL_PREAMBLE, *lines))}


def _tool(name: str, **parameters: str) -> str:
    return json.dumps({"name": name, "parameters": parameters})


_TOOLS = {
    "get_weather": _tool("get_weather", city="string"),
    "get_time": _tool("get_time", city="string"),
    "add": _tool("add", a="integer", b="integer"),
    "set_alarm": _tool("set_alarm", hour="integer", minute="integer"),
    "search": _tool("search", query="string"),
    "find_animal": _tool("find_animal", kind="string", color="string"),
}


def _call(tool: str, /, **arguments: object) -> str:
    return f"<|tool_call|>{json.dumps({'name': tool, 'arguments': arguments})}<|/tool_call|>"


def _name(random: Random) -> Form:
    name = random.choice(HELD_OUT_NAMES)
    told = random.choice((f"My name is {name}.", f"I am {name}.", f"You may call me {name}."))
    asked = random.choice(("What is my name?", "Do you know my name?", "Say my name."))
    greeting = _assistant(f"Hello, {name}! I am glad to meet you.")
    return Form("name_recall", [_user(told), greeting, _user(asked)], f"Your name is {name}.")


def _json(random: Random) -> Form:
    city, name = random.choice(HELD_OUT_CITIES), random.choice(HELD_OUT_NAMES)
    choices: list[dict[str, object]] = [
        {"name": name, "age": random.randint(2, 12)},
        {"city": city, "visitor": name},
    ]
    wanted = random.choice(choices)
    fields = ", ".join(f"{key} {value}" for key, value in wanted.items())
    start = random.choice(("Give me JSON with", "Answer in JSON:", "Make a JSON object:"))
    return Form("json", [_user(f"{start} {fields}.")], json.dumps(wanted))


def _weather(random: Random) -> Form:
    city = random.choice(HELD_OUT_CITIES)
    name, question = random.choice(
        (
            ("get_weather", f"What is the weather in {city}?"),
            ("get_weather", f"What is the weather in {city} today?"),
            ("get_time", f"What time is it in {city}?"),
            ("get_time", f"Tell me the time in {city}."),
        )
    )
    return Form("tool_city", [_system(random, name), _user(question)], _call(name, city=city))


def _alarm(random: Random) -> Form:
    hour, minute = random.randint(5, 22), random.choice((0, 15, 30, 45))
    question = random.choice(("Wake me at", "Set an alarm for")) + f" {hour}:{minute:02d}."
    chat = [_system(random, "set_alarm"), _user(question)]
    return Form("tool_alarm", chat, _call("set_alarm", hour=hour, minute=minute))


def _tool_sum(random: Random) -> Form:
    a, b = _held_out_pair(random, 10, 99)
    question = random.choice((f"What is {a} plus {b}?", f"How much is {a} plus {b}?"))
    return Form("tool_sum", [_system(random, "add"), _user(question)], _call("add", a=a, b=b))


def _tool_result(random: Random) -> Form:
    form = _tool_sum(random)
    a, b = (int(number) for number in re.findall(r"\d+", str(form.chat[1]["content"])))
    result = {"role": "tool", "content": json.dumps({"result": a + b})}
    chat = [*form.chat, _assistant(form.answer), result]
    return Form("tool_result", chat, f"{a} plus {b} is {a + b}.")


def _sum(random: Random) -> Form:
    a, b = _held_out_pair(random, 1, 9)
    return Form("small_sum", [_user(f"What is {a} plus {b}?")], f"{a} plus {b} is {a + b}.")


def _repeat(random: Random) -> Form:
    first, second = random.sample(_COLOURS, 2)
    phrase = f"{first} {random.choice(_THINGS)} and {second} {random.choice(_ANIMALS)}"
    return Form("repeat", [_user(f"Repeat after me: {phrase}")], phrase)


def _count(random: Random) -> Form:
    last = random.randint(3, 10)
    numbers = ", ".join(str(number) for number in range(1, last + 1))
    return Form("count", [_user(f"Count from 1 to {last}.")], f"{numbers}.")


def _held_out_pair(random: Random, low: int, high: int) -> tuple[int, int]:
    numbers = range(low, high + 1)
    return random.choice([(a, b) for a in numbers for b in numbers if is_held_out_pair(a, b)])
