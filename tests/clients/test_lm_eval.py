"""lm-eval's `local-completions`: its scores are those of transformers on the same items."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from octavo.engine.bundled import TARGET

from ..e2e.daemon import Daemon
from ..e2e.prompts import english
from .running import CLIENTS, output_of

pytestmark = pytest.mark.slow

ITEMS, CHOICES, WRITTEN_TOKENS = 24, 3, 24
STOPS = ["\n\n\n", "Q:", "###", "</answer>", "zebra", "."]  # more than OpenAI's four


class Reference:
    """transformers, in float32, one sequence at a time."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._tokenizer = AutoTokenizer.from_pretrained(TARGET)
        self._model = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    @torch.inference_mode()
    def score(self, context: str, ending: str) -> tuple[float, bool]:
        """The log-likelihood of the ending, and whether greedy decoding would say it."""
        ids, border = self._ids(context + ending), len(self._ids(context))
        logprobs = (
            self._model(torch.tensor([ids])).logits[0].log_softmax(-1)
        )  # [tokens, vocabulary]
        rows, wanted = logprobs[border - 1 : -1], torch.tensor(ids[border:])
        score = rows.gather(1, wanted[:, None]).sum().item()
        return score, bool((rows.argmax(-1) == wanted).all())

    @torch.inference_mode()
    def write(self, context: str, tokens: int) -> str:
        """What greedy decoding says."""
        ids = torch.tensor([self._ids(context)])
        written = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        text: str = self._tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        return text


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="module")
def items(reference: Reference) -> list[dict[str, Any]]:
    """Contexts of 2 to 60 words, each with endings of one to four words, every other time what
    greedy decoding says. Some contexts share a beginning of several KV blocks, so that scores must
    be right on a prefix hit, too."""
    draw = random.Random(11)
    shared = english(draw, 50)
    contexts = [english(draw, draw.randint(2, 60)) for _ in range(ITEMS)]
    contexts[1::3] = [f"{shared} {context}" for context in contexts[1::3]]
    endings = [[" " + english(draw, draw.randint(1, 4)) for _ in range(CHOICES)] for _ in contexts]
    for context, choices in list(zip(contexts, endings, strict=True))[::2]:
        choices[-1] = reference.write(context, 3)
    return [
        {"context": context, "choices": choices, "answer": draw.randrange(CHOICES)}
        for context, choices in zip(contexts, endings, strict=True)
    ]


TASKS = {
    "endings": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "stories": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": STOPS, "max_gen_toks": WRITTEN_TOKENS, "temperature": 0},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


@dataclass(frozen=True, slots=True)
class Scored:
    """What lm-eval found."""

    accuracy: float
    endings: list[list[float]]  # log-likelihood by item and choice
    greedy: list[list[bool]]  # whether a choice is what greedy decoding says
    stories: list[str]


@pytest.fixture(scope="module", params=["huggingface", "remote"])
def scored(
    request: pytest.FixtureRequest,
    items: list[dict[str, Any]],
    daemon: Daemon,
    tmp_path_factory: pytest.TempPathFactory,
) -> Scored:
    """With the checkpoint's tokenizer, and with the server's, over /tokenize."""
    folder = tmp_path_factory.mktemp("lm-eval")
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    for name, task in TASKS.items():
        whole = {"task": name, "dataset_path": "json", "test_split": "test", **task}
        whole |= {"dataset_kwargs": {"data_files": {"test": str(data)}}, "target_delimiter": ""}
        (folder / f"{name}.yaml").write_text(json.dumps(whole))  # JSON is YAML
    model = {
        "model": "octavo",
        "base_url": f"{daemon.url}/v1/completions",
        "tokenizer_backend": request.param,
        "num_concurrent": 2,
    }
    if request.param == "huggingface":
        model["tokenizer"] = str(TARGET)
    options = {
        "--model": "local-completions",
        "--model_args": ",".join(f"{name}={value}" for name, value in model.items()),
        "--tasks": ",".join(TASKS),
        "--include_path": str(folder),
        "--output_path": str(folder / "out"),
        "--batch_size": "4",
    }
    arguments = [part for option in options.items() for part in option]
    output_of(
        [CLIENTS / "bin" / "lm-eval", "run", *arguments, "--log_samples"],
        environment={"HF_HOME": str(folder / "hub")},
    )
    (results,) = folder.glob("out/*/results_*.json")
    endings, stories = _samples(folder, "endings"), _samples(folder, "stories")
    answers = [[answer for ((answer),) in sample["resps"]] for sample in endings]
    return Scored(
        accuracy=json.loads(results.read_text())["results"]["endings"]["acc,none"],
        endings=[[float(answer[0]) for answer in item] for item in answers],
        greedy=[[answer[1] == "True" for answer in item] for item in answers],
        stories=[sample["resps"][0][0] for sample in stories],
    )


def _samples(folder: Path, task: str) -> list[dict[str, Any]]:
    (file,) = folder.glob(f"out/*/samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


def test_scores(scored: Scored, items: list[dict[str, Any]], reference: Reference) -> None:
    right = []
    for item, scores, greedy in zip(items, scored.endings, scored.greedy, strict=True):
        expected = [reference.score(item["context"], ending) for ending in item["choices"]]
        assert scores == pytest.approx([score for score, _ in expected], abs=2e-3)
        assert greedy == [said for _, said in expected]
        best = max(range(CHOICES), key=lambda choice: expected[choice][0])
        right.append(best == item["answer"])
    assert scored.accuracy == pytest.approx(sum(right) / ITEMS)
    assert any(map(any, scored.greedy))


def test_texts(scored: Scored, items: list[dict[str, Any]], reference: Reference) -> None:
    whole = [reference.write(item["context"], WRITTEN_TOKENS) for item in items]
    expected = [min((text.partition(stop)[0] for stop in STOPS), key=len) for text in whole]
    assert scored.stories == expected
    assert whole != expected, "no story met a stop"
