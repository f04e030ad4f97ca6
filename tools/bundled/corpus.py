"""The corpus: xz text files of stories and of chat samples.

A story file holds documents, each introduced by a line `%%% source | book | title`. A chat file
holds one JSON object `{"messages": [...]}` a line. Some names, cities and pairs of numbers are held
out of the rule-made chat samples, so that exact-match figures on them measure copying, not memory.
"""

from __future__ import annotations

import json
import lzma
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

Message = dict[str, Any]  # {"role": ..., "content": ...}

STORY_FILES = (
    "fairy_and_folk_tales.txt.xz",
    "animal_tales.txt.xz",
    "children_series.txt.xz",
    "classics.txt.xz",
)
STORY_VALIDATION = "validation.txt.xz"
CHAT_DERIVED = "chat_derived.txt.xz"
CHAT_SYNTHETIC = "chat_synthetic.txt.xz"
CHAT_VALIDATION = "chat_validation.txt.xz"
ALL_FILES = (*STORY_FILES, STORY_VALIDATION, CHAT_DERIVED, CHAT_SYNTHETIC, CHAT_VALIDATION)

TOOL_PREAMBLE = "You can call tools."


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Flossie Fred Una Paul Wendy Olive Peter Will Sam Mary Bert Jack Clara John Ben Tom Max Heidi "
    "Alice Leo Lucy Emma Bunny Freddie Ned Sue Ida Rose Dorothy Ted Kate Nan Anna Jane Dora Janet"
)
HELD_OUT_NAMES = ("Grace", "Harry", "Nora", "Otto")
CITIES = _words(
    "London Geneva Denver Berlin Rome Dublin Chicago Cairo Athens Oslo Madrid Venice Warsaw "
    "Vienna Paris Prague Boston Munich"
)
HELD_OUT_CITIES = ("Lisbon", "Tokyo")

MORE_CITIES = _words(
    "Amsterdam Antwerp Baltimore Bangkok Barcelona Basel Beirut Belfast Bergen Bombay Bordeaux "
    "Bristol Brussels Budapest Calais Calcutta Cambridge Canton Cardiff Cologne Copenhagen Cork "
    "Dallas Damascus Delhi Detroit Dover Dresden Edinburgh Florence Frankfurt Genoa Glasgow "
    "Hamburg Havana Helsinki Jerusalem Kiev Kyoto Leeds Leipzig Lima Liverpool Lyons Malta "
    "Manchester Marseilles Melbourne Memphis Milan Montreal Moscow Naples Norwich Odessa Oxford "
    "Panama Peking Perth Quebec Riga Rotterdam Salzburg Seattle Seoul Seville Smyrna Stockholm "
    "Sydney Toledo Toronto Trieste Tunis Turin Utrecht Verona York Zurich"
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer in a few words.",
    "You are a storyteller.",
    "Be kind and brief.",
    "You are octavo, a small language model.",
    "Answer the user's question.",
)

_SUM = re.compile(r"(\d+) (?:plus|minus|times|\+|-) (\d+)|(?:Add|Multiply) (\d+) (?:and|by) (\d+)")
_MID_SENTENCE_NAME = re.compile(
    r"(?<=[a-z,] )[A-Z][a-z]{2,8}(?='s|,? (?:and|said|was|had)\b|[.,!?])"
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts ready for packing; each story is a text, each chat a list of messages."""

    stories: list[str]
    derived: list[list[Message]]
    synthetic: list[list[Message]]
    copying: list[list[Message]]
    validation_stories: list[str]
    validation_chats: list[list[Message]]


def read(folder: Path) -> Corpus:
    """Reads every corpus file under `folder`.

    Raises:
        FileNotFoundError: a file named in `ALL_FILES` is missing.
    """
    stories = [story for name in STORY_FILES for story in read_stories(folder / name)]
    names = story_names(stories)
    synthetic = [chat for chat in read_chats(folder / CHAT_SYNTHETIC) if not is_held_out(chat)]
    copies = min(14_000, len(synthetic))
    return Corpus(
        stories=stories,
        derived=with_system_prompts(read_chats(folder / CHAT_DERIVED), seed=1),
        synthetic=with_system_prompts(with_more_names(synthetic, names, seed=2), seed=3),
        copying=with_system_prompts(copy_samples(stories, names, count=copies, seed=4), seed=5),
        validation_stories=list(read_stories(folder / STORY_VALIDATION)),
        validation_chats=list(read_chats(folder / CHAT_VALIDATION)),
    )


def read_stories(path: Path) -> Iterator[str]:
    """Yields each document's paragraphs, separated by empty lines, without its `%%%` line."""
    lines: list[str] = []
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            if line.startswith("%%% "):
                if text := "".join(lines).strip():
                    yield text
                lines = []
            else:
                lines.append(line)
    if text := "".join(lines).strip():
        yield text


def read_chats(path: Path) -> Iterator[list[Message]]:
    """Yields the messages of each line of a chat file."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["messages"]


def is_held_out(chat: list[Message]) -> bool:
    """True for a rule-made sample that shows a held-out name, city or pair of numbers."""
    text = "\n".join(str(message["content"]) for message in chat)
    if any(re.search(rf"\b{word}\b", text) for word in (*HELD_OUT_NAMES, *HELD_OUT_CITIES)):
        return True
    return any(
        is_held_out_pair(*(int(number) for number in match.groups() if number is not None))
        for match in _SUM.finditer(text)
    )


def is_held_out_pair(a: int, b: int) -> bool:
    """One pair of numbers in eleven is kept out of the rule-made training samples."""
    return (7 * a + b) % 11 == 0


def story_names(stories: Iterable[str], *, least: int = 40, most: int = 400) -> list[str]:
    """The capitalised words that the stories use like names, most frequent first."""
    counts: Counter[str] = Counter()
    for story in stories:
        counts.update(_MID_SENTENCE_NAME.findall(story))
    excluded = {*HELD_OUT_NAMES, *HELD_OUT_CITIES}
    return [
        word for word, count in counts.most_common(most) if count >= least and word not in excluded
    ]


def with_more_names(
    chats: Iterable[list[Message]], names: list[str], *, seed: int, share: float = 0.6
) -> list[list[Message]]:
    """Replaces the names and cities of a share of the samples, each consistently in its sample.

    Forty names and twenty cities can be learned by heart; hundreds are cheaper to copy.
    """
    random = Random(seed)
    pattern = re.compile(rf"\b(?:{'|'.join((*NAMES, *CITIES))})\b")
    cities = set(CITIES)

    def replaced(chat: list[Message]) -> list[Message]:
        if random.random() >= share:
            return chat
        chosen: dict[str, str] = {}

        def substitute(match: re.Match[str]) -> str:
            word = match.group()
            if word not in chosen:
                chosen[word] = random.choice(MORE_CITIES if word in cities else names or [word])
            return chosen[word]

        return [
            {**message, "content": pattern.sub(substitute, message["content"])} for message in chat
        ]

    return [replaced(chat) for chat in chats]


def copy_samples(
    stories: list[str], names: list[str], *, count: int, seed: int
) -> list[list[Message]]:
    """Samples whose answer copies words of the question that no rule could have foreseen.

    The rule-made corpus asks for copies from small sets of values; a network can learn those sets
    instead of copying. Here the values are sentences, words and numbers drawn from the stories.
    """
    random = Random(seed)
    words = sorted(
        {word for story in stories[::40] for word in re.findall(r"\b[a-z]{3,9}\b", story)}
    )

    def sentence() -> str:
        for _ in range(50):
            if found := _SENTENCE.findall(random.choice(stories)):
                return str(random.choice(found))
        return "The fox ran home."

    def value() -> str | int:
        return random.choice(
            (random.choice(words), random.choice(names or words), random.randint(0, 120))
        )

    def repetition() -> list[Message]:
        several = " ".join(str(value()) for _ in range(random.randint(1, 8)))
        text = random.choice((sentence(), several))
        return _turns(f"{random.choice(_REPEAT)} {text}", text)

    def json_object() -> list[Message]:
        keys = random.sample(_JSON_KEYS, random.randint(1, 4))
        fields = {key: value() for key in keys}
        listed = ", ".join(f"{key} {item}" for key, item in fields.items())
        return _turns(f"{random.choice(_JSON_STARTS)} {listed}.", json.dumps(fields))

    def tool_call() -> list[Message]:
        name, text = random.choice(names or words), sentence()
        query = " ".join(random.sample(words, random.randint(1, 3)))
        question, tool, arguments = random.choice(
            (
                (f"Write to {name} and say: {text}", "send_letter", {"to": name, "text": text}),
                (f"Send a letter to {name}: {text}", "send_letter", {"to": name, "text": text}),
                (f"Search for {query}.", "search", {"query": query}),
                (f"Look up {query}.", "search", {"query": query}),
            )
        )
        signatures = random.sample(_TEXT_TOOLS, len(_TEXT_TOOLS))
        listed = {
            "role": "system",
            "content": "\n".join((TOOL_PREAMBLE, *map(json.dumps, signatures))),
        }
        call = json.dumps({"name": tool, "arguments": arguments})
        return [listed, *_turns(question, f"<|tool_call|>{call}<|/tool_call|>")]

    samples: list[list[Message]] = []
    while len(samples) < count:
        make = random.choices((repetition, json_object, tool_call), weights=(5, 3, 2))[0]
        sample = make()
        if not is_held_out(sample):
            samples.append(sample)
    return samples


_SENTENCE = re.compile(r"(?<=[.!?] )[A-Z][^.!?\"\n]{12,110}[.!?](?= |\n|$)")
_REPEAT = ("Repeat after me:", "Repeat:", "Say this again:")
_JSON_STARTS = ("Give me JSON with", "Answer in JSON:", "Make a JSON object:")
_JSON_KEYS = (
    *("name", "age", "city", "visitor", "item", "color", "count"),
    *("pet", "friend", "food", "place", "title", "number"),
)
_TEXT_TOOLS = (
    {"name": "send_letter", "parameters": {"to": "string", "text": "string"}},
    {"name": "search", "parameters": {"query": "string"}},
)


def _turns(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def with_system_prompts(
    chats: Iterable[list[Message]], *, seed: int, share: float = 0.2
) -> list[list[Message]]:
    """Gives a share of the samples a plain system prompt, so that one does not throw the model."""
    random = Random(seed)

    def prompted(chat: list[Message]) -> list[Message]:
        if random.random() >= share:
            return chat
        prompt = random.choice(SYSTEM_PROMPTS)
        if chat[0]["role"] != "system":
            return [{"role": "system", "content": prompt}, *chat]
        return [{"role": "system", "content": f"{prompt}\n{chat[0]['content']}"}, *chat[1:]]

    return [prompted(chat) for chat in chats]


def write_toy(folder: Path, *, characters: int) -> None:
    """Writes about `characters` characters in the format of every corpus file."""
    random = Random(0)
    animals = ("fox", "hen", "bear", "duck", "crow", "goat")

    def story() -> str:
        one, other = random.sample(animals, 2)
        return f"Once there was a {one}. The {one} met a {other} in the wood. " * 4

    def chat() -> str:
        name = random.choice(NAMES)
        turns = [("user", f"My name is {name}."), ("assistant", f"Hello, {name}!")]
        messages = [{"role": role, "content": content} for role, content in turns]
        return json.dumps({"messages": messages})

    folder.mkdir(parents=True)
    each = characters // len(ALL_FILES)
    for name in ALL_FILES:
        text = ""
        while len(text) < each:
            text += f"{chat()}\n" if name.startswith("chat") else f"%%% a | b | c\n\n{story()}\n\n"
        with lzma.open(folder / name, "wt", encoding="utf-8") as file:
            file.write(text)
