"""The part of the model card that is written from `eval.json`, so that the two cannot disagree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

BEGIN = "<!-- figures: written by tools/train_bundled.py from eval.json -->"
END = "<!-- end of figures -->"

FORMS = {
    "count": "count from 1 to n",
    "json": "a JSON object with given fields",
    "name_recall": "recall a name told before",
    "repeat": "repeat a phrase",
    "small_sum": "add two one-digit numbers, without a tool",
    "tool_alarm": "call `set_alarm` with a time",
    "tool_city": "call `get_weather` or `get_time` with a city",
    "tool_result": "report a tool's result",
    "tool_sum": "call `add` with two numbers",
}
STREAMS = {"validation_stories": "stories", "validation_chat": "chats"}


def refresh(card: Path, figures: dict[str, Any]) -> None:
    """Replaces the written part of the card.

    Raises:
        ValueError: the card has no such part.
    """
    text = card.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{card} lacks the lines {BEGIN!r} and {END!r}")
    card.write_text(f"{before}{written(figures)}{after}", encoding="utf-8")


def written(figures: dict[str, Any]) -> str:
    """The written part, with its first and last line."""
    parts = (_training(figures), _losses(figures), _agreement(figures), _forms(figures))
    tables = "\n\n".join("\n".join(part) for part in (*parts, _samples(figures)))
    return f"{BEGIN}\n\n{tables}\n\n{END}"


def _table(*rows: Iterable[object]) -> Iterator[str]:
    head, *body = [[str(cell) for cell in row] for row in rows]
    for row in (head, ["---"] * len(head), *body):
        yield f"| {' | '.join(row)} |"


def _training(figures: dict[str, Any]) -> Iterator[str]:
    return _table(
        ("run", "steps", "tokens", "minutes", "threads"),
        *(
            (
                name,
                run["steps"],
                f"{run['tokens'] / 1e6:.1f} M",
                round(run["seconds"] / 60),
                run["threads"],
            )
            for name, run in figures["training"].items()
        ),
    )


def _losses(figures: dict[str, Any]) -> Iterator[str]:
    return _table(
        ("held-out loss, nats a token (perplexity)", *STREAMS.values()),
        *(
            (
                model,
                *(
                    f"{losses[stream]['loss']:.3f} ({losses[stream]['perplexity']:.1f})"
                    for stream in STREAMS
                ),
            )
            for model, losses in figures["losses"].items()
        ),
    )


def _agreement(figures: dict[str, Any]) -> Iterator[str]:
    agreement = figures["agreement"]
    return _table(
        ("draft and target agree", *STREAMS.values()),
        *(
            (label, *(f"{agreement[stream][measure]:.1%}" for stream in STREAMS))
            for measure, label in (
                ("greedy", "on the likeliest token"),
                ("overlap", "when sampling at temperature 1"),
            )
        ),
    )


def _forms(figures: dict[str, Any]) -> Iterator[str]:
    forms = figures["forms"]
    return _table(
        ("exactly right, greedy, on values held out of training", *forms),
        *(
            (
                label,
                *(
                    f"{forms[model][kind]['right']} of {forms[model][kind]['asked']}"
                    for model in forms
                ),
            )
            for kind, label in FORMS.items()
        ),
    )


def _samples(figures: dict[str, Any]) -> Iterator[str]:
    samples = figures["samples"]
    yield (
        f"Samples of the target at temperature {samples['temperature']}, top-p {samples['top_p']}, "
        "fixed seeds, not chosen:"
    )
    for sample in samples["target"]:
        yield ""
        yield f"> **{sample['prompt']}**" + (" (chat)" if sample["chat"] else "")
        for line in sample["text"].strip().splitlines():
            yield f"> {line}".rstrip()
