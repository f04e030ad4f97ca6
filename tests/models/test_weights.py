"""Loading: every tensor to its place, whatever is wrong said in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.engine import weights
from octavo.engine.bundled import TARGET
from octavo.engine.errors import BrokenCheckpoint, ConfigError
from octavo.engine.models.base import Model
from octavo.engine.weights import load_model

from .checkpoints import Family, edit_config, write_checkpoint
from .stepping import CPU, Stepper

SHARDED = Family("llama", shard_size="40KB")


def load(folder: Path, **options: object) -> Model:
    return load_model(folder, dtype=torch.float32, device=CPU, **options)  # type: ignore[arg-type]


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrite model.safetensors after `change` has had its way with it."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_merged_parameters_hold_every_tensor_once(tmp_path: Path) -> None:
    theirs = write_checkpoint(SHARDED, tmp_path)
    ours = load(tmp_path)
    expected = dict(theirs.named_parameters())
    assert ours.parameter_count == sum(p.numel() for p in expected.values())
    assert ours.weight_bytes == 4 * ours.parameter_count


def test_progress_grows_to_the_end(tmp_path: Path) -> None:
    write_checkpoint(SHARDED, tmp_path)
    seen: list[tuple[str, int, int]] = []
    load(tmp_path, progress=lambda stage, done, total: seen.append((stage, done, total)))
    assert len({stage for stage, _, _ in seen}) == 1
    done = [d for _, d, _ in seen]
    assert done == sorted(done) and done[0] == 0 and len(done) > 10
    assert seen[-1][1] == seen[-1][2] > 0


def test_making_random_weights_is_told_of_too(tmp_path: Path) -> None:
    write_checkpoint(SHARDED, tmp_path)
    seen: list[tuple[str, int, int]] = []
    load(tmp_path, load_format="dummy", progress=lambda *said: seen.append(said))
    done = [d for _, d, _ in seen]
    assert done == sorted(done) and done[0] == 0 and len(done) > 10
    assert seen[-1][1] == seen[-1][2] > 0


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_cast_on_the_way(stored: torch.dtype, tmp_path: Path) -> None:
    write_checkpoint(Family("llama"), tmp_path)
    reference = load_file(tmp_path / "model.safetensors")

    def cast(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: t.to(stored) for name, t in tensors.items()})

    edit_weights(tmp_path, cast)
    embedding = next(p for p in read_back(tmp_path) if p[0] == "model.embed_tokens.weight")[1]
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding, reference["model.embed_tokens.weight"].to(stored).float())


def read_back(folder: Path) -> list[tuple[str, Tensor]]:
    """The loaded tensors by their names in the checkpoint, from a model not yet finished."""
    kept: list[tuple[str, Tensor]] = []
    original = Model.finish

    def keep(model: Model) -> None:
        kept.extend((p.name, p.tensor.clone()) for p in model.parameters())
        original(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "finish", keep)
        weights.load_model(folder, dtype=torch.float32, device=CPU)
    return kept


def test_every_tensor_arrives_in_its_part_of_the_merged_ones(tmp_path: Path) -> None:
    biases = {"attention_bias": True, "mlp_bias": True}
    theirs = write_checkpoint(replace(SHARDED, config=biases), tmp_path)
    arrived = dict(read_back(tmp_path))
    expected = dict(theirs.named_parameters())
    assert set(arrived) == set(expected)
    assert all(torch.equal(arrived[name], expected[name]) for name in expected)


def test_a_tied_head_may_also_be_stored(tmp_path: Path) -> None:
    write_checkpoint(Family("llama", {"tie_word_embeddings": True}), tmp_path)
    ids = torch.arange(5)
    (before,) = Stepper(load(tmp_path), [ids]).step({0: 5})
    edit_weights(tmp_path, lambda t: t.update({"lm_head.weight": torch.zeros(97, 48)}))
    (after,) = Stepper(load(tmp_path), [ids]).step({0: 5})
    assert torch.equal(before, after)


def test_names_with_another_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(Family("llama"), tmp_path)

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            if name.startswith("model."):
                tensors["decoder." + name.removeprefix("model.")] = tensors.pop(name)

    edit_weights(tmp_path, rename)
    with pytest.raises(BrokenCheckpoint, match=r"lacks the tensors model\."):
        load(tmp_path)
    monkeypatch.setattr(Model, "renames", (("decoder.", "model."),))
    load(tmp_path)


def test_frequencies_of_old_checkpoints_are_passed_over(tmp_path: Path) -> None:
    write_checkpoint(Family("llama"), tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(tmp_path, lambda t: t.update({name: torch.zeros(4)}))
    load(tmp_path)


def test_random_weights_need_no_files_and_are_always_the_same(tmp_path: Path) -> None:
    write_checkpoint(Family("qwen3", {"head_dim": 16}), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    ids = torch.arange(9)
    one, two = (
        Stepper(load(tmp_path, load_format="dummy"), [ids]).step({0: 9})[0] for _ in range(2)
    )
    assert torch.equal(one, two)
    assert one.isfinite().all() and one.std() > 0


@pytest.mark.parametrize("drawn", [100, 1000, 1 << 22])
def test_random_weights_of_a_large_tensor_are_a_part_that_is_repeated(
    drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_DRAWN", drawn)
    tensor = torch.full((70, 30), float("nan"))
    weights._repeat_normals(tensor, torch.Generator().manual_seed(0))
    rows = min(70, drawn // 30)
    for begin in range(0, 70, rows):
        part = tensor[begin : begin + rows]
        assert torch.equal(part, tensor[: len(part)])
    assert 0.01 < tensor.std() < 0.03
    assert len(tensor[:rows].unique()) > 25 * rows
    vector = torch.full((3,), float("nan"))
    weights._repeat_normals(vector, torch.Generator().manual_seed(0))
    assert vector.isfinite().all()


MEASURE = """
import sys
from pathlib import Path
import torch
from octavo.engine.weights import load_model

def resident(name):
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index(name) + 1]) * 1024

def load(folder):
    return load_model(folder, dtype=torch.float32, device=torch.device("cpu"))

small, large = sys.argv[1:]
load(small)  # what a first load imports
before = resident("VmRSS:")
weights = load(large).weight_bytes
print(weights, resident("VmHWM:") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_the_weights_and_one_tensor(tmp_path: Path) -> None:
    write_checkpoint(Family("llama"), tmp_path / "small")
    size = {"hidden_size": 528, "intermediate_size": 2048, "vocab_size": 8000}
    write_checkpoint(Family("llama", size), tmp_path / "large")
    tensors = load_file(tmp_path / "large" / "model.safetensors")
    largest = max(tensor.nbytes for tensor in tensors.values())
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    weights, peak = map(int, printed.split())
    assert weights == sum(tensor.nbytes for tensor in tensors.values()) > 4 * largest
    assert weights < peak < weights + largest + (8 << 20)


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop("model.norm.weight"), "lacks the tensor model.norm.weight."),
        (drop("lm_head.weight"), "lacks the tensor lm_head.weight."),
        (put("model.extra.weight", torch.zeros(3)), "holds the tensor model.extra.weight, which"),
        (
            put("model.layers.1.self_attn.q_proj.bias", torch.zeros(48)),
            "holds the tensor model.layers.1.self_attn.q_proj.bias, which",
        ),
        (
            put("model.norm.weight", torch.zeros(47)),
            "holds model.norm.weight as [47], but config.json makes it [48]",
        ),
        (
            put("model.norm.weight", torch.zeros(48, dtype=torch.int8)),
            "holds model.norm.weight as int8, which is no plain floating-point format",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_tensor_is_named(
    change: Callable[[dict[str, Tensor]], object], sentence: str, tmp_path: Path
) -> None:
    write_checkpoint(Family("llama"), tmp_path)
    edit_weights(tmp_path, change)
    with pytest.raises(BrokenCheckpoint) as caught:
        load(tmp_path)
    assert sentence in str(caught.value)


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    write_checkpoint(Family("llama"), tmp_path)
    edit_config(tmp_path, num_hidden_layers=4)
    with pytest.raises(BrokenCheckpoint, match=r"lacks the tensors model\.layers\.3.* and 6 more"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 300, 20_000])
def test_a_file_cut_short(keep: int, tmp_path: Path) -> None:
    write_checkpoint(Family("llama"), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BrokenCheckpoint, match=r"model\.safetensors is cut short or damaged"):
        load(tmp_path)


def test_a_missing_shard(tmp_path: Path) -> None:
    write_checkpoint(SHARDED, tmp_path)
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(BrokenCheckpoint, match=rf"{victim.name} is missing"):
        load(tmp_path)


def test_an_index_that_names_the_wrong_shard_still_finds_every_tensor(tmp_path: Path) -> None:
    """The files say themselves what they hold."""
    write_checkpoint(SHARDED, tmp_path)
    index_file = tmp_path / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    files = sorted(set(index["weight_map"].values()))
    names = list(index["weight_map"])
    index["weight_map"] = {name: files[i % len(files)] for i, name in enumerate(names)}
    index_file.write_text(json.dumps(index))
    load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_act": "gelu"}, "activation 'gelu' of LlamaForCausalLM is not supported"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope type 'spiral'; known are default"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' without its number 'factor'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized by gptq"),
        ({"quantization_config": "gptq"}, "quantized by an unnamed method"),
    ],
)
def test_what_a_config_asks_for_and_nobody_can_do(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    write_checkpoint(Family("llama"), tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert sentence in str(caught.value)


def test_an_unknown_load_format(tmp_path: Path) -> None:
    write_checkpoint(Family("llama"), tmp_path)
    with pytest.raises(ConfigError, match="--load-format gguf is not known"):
        load(tmp_path, load_format="gguf")


def test_the_bundled_model_is_what_transformers_computes() -> None:
    from transformers import AutoModelForCausalLM

    from .checkpoints import logits_of

    theirs = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32).eval()
    ids = torch.randint(0, 4096, (150,), generator=torch.Generator().manual_seed(0))
    stepper = Stepper(load(TARGET), [ids], block_size=16)
    got = torch.cat([stepper.step({0: count})[0] for count in (100, 47, 1, 1, 1)])
    torch.testing.assert_close(got, logits_of(theirs, ids), atol=1e-4, rtol=0)
