"""Reading config.json and generation_config.json, and what is said where they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.engine.bundled import TARGET
from octavo.engine.checkpoint import Rope, read_model_config, weight_files
from octavo.engine.errors import BrokenCheckpoint, ModelNotFound, UnsupportedArchitecture
from octavo.engine.registry import ARCHITECTURES

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 256,
    "eos_token_id": 7,
}


def write(folder: Path, generation: dict[str, Any] | None = None, **changes: object) -> Path:
    config = {k: v for k, v in {**LLAMA, **changes}.items() if v != "absent"}
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_the_numbers(tmp_path: Path) -> None:
    config = read_model_config(write(tmp_path, torch_dtype="bfloat16", rms_norm_eps=1e-5))
    assert (config.hidden_size, config.layers, config.heads) == (64, 2, 4)
    assert (config.kv_heads, config.head_dim) == (4, 16)  # from the others where not stated
    assert (config.vocab_size, config.max_position_embeddings) == (100, 256)
    assert (config.dtype, config.norm_epsilon) == ("bfloat16", 1e-5)
    assert config.windows == (None, None)
    assert not config.tied_embeddings


def test_both_spellings_of_the_dtype(tmp_path: Path) -> None:
    assert read_model_config(write(tmp_path, dtype="float16")).dtype == "float16"
    assert read_model_config(write(tmp_path, torch_dtype="float16")).dtype == "float16"
    assert read_model_config(write(tmp_path)).dtype == "float32"


def test_end_of_sequence_ids_come_from_the_generation_config_first(tmp_path: Path) -> None:
    assert read_model_config(write(tmp_path)).eos_token_ids == (7,)
    assert read_model_config(write(tmp_path, {"temperature": 1.0})).eos_token_ids == (7,)
    assert read_model_config(write(tmp_path, {"eos_token_id": [3, 9]})).eos_token_ids == (3, 9)
    assert read_model_config(write(tmp_path, {"eos_token_id": 0})).eos_token_ids == (0,)
    (tmp_path / "generation_config.json").unlink()
    assert read_model_config(write(tmp_path, eos_token_id=None)).eos_token_ids == ()


def test_sampling_defaults_have_our_names(tmp_path: Path) -> None:
    generation = {"temperature": 0.6, "top_k": 20, "max_new_tokens": 99, "do_sample": True}
    config = read_model_config(write(tmp_path, generation))
    assert config.sampling_defaults == {"temperature": 0.6, "top_k": 20, "max_tokens": 99}


def test_rope_in_both_spellings(tmp_path: Path) -> None:
    expected = Rope(kind="yarn", theta=5000.0, numbers={"factor": 4.0})
    old = {"type": "yarn", "factor": 4.0}
    assert read_model_config(write(tmp_path, rope_scaling=old, rope_theta=5e3)).rope == expected
    new = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5000.0}
    assert read_model_config(write(tmp_path, rope_parameters=new)).rope == expected
    assert read_model_config(write(tmp_path, rope_scaling=None)).rope == Rope()


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        (None, 256),
        ({"rope_type": "linear", "factor": 4.0}, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}, 400),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "dynamic", "factor": 4.0}, 256),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}, 256),
    ],
)
def test_the_context_length_counts_the_stretching(
    rope: dict[str, Any] | None, length: int, tmp_path: Path
) -> None:
    assert read_model_config(write(tmp_path, rope_scaling=rope)).context_length == length


def test_the_bundled_model_is_read() -> None:
    config = read_model_config(TARGET)
    assert config.architecture == "LlamaForCausalLM"
    assert len(config.eos_token_ids) == 2
    assert len(weight_files(TARGET)) == 2


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no model folder.*nowhere"):
        read_model_config(tmp_path / "nowhere")


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpoint, match=r"no config\.json"):
        read_model_config(tmp_path)


def test_an_architecture_without_a_model_is_named_with_those_that_have_one(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture) as caught:
        read_model_config(write(tmp_path, architectures=["MambaForCausalLM"]))
    assert "'MambaForCausalLM'" in str(caught.value)
    assert all(name in str(caught.value) for name in ARCHITECTURES)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architectures": "absent"}, "names no architecture"),
        ({"architectures": []}, "names no architecture"),
        ({"architectures": [3]}, "architectures = [3] instead of a list of names"),
        ({"hidden_size": "absent"}, "has no hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0 instead"),
        ({"vocab_size": "many"}, "vocab_size = 'many' instead"),
        ({"num_key_value_heads": 3}, "4 attention heads, which is no multiple of 3"),
        ({"layer_types": ["full_attention"]}, "1 layer_types for 2 layers"),
        ({"layer_types": "full"}, "layer_types = 'full' instead of a list of names"),
        ({"rope_scaling": {"full_attention": {}}}, "rope parameters"),
        ({"rope_scaling": [1]}, "rope parameters"),
        ({"rope_theta": "big"}, "rope_theta = 'big' instead of a positive number"),
        ({"rope_scaling": {"factor": "2x"}}, "rope parameter factor = '2x' instead of a number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0 instead of a positive number"),
        ({"rms_norm_eps": None, "eos_token_id": "</s>"}, "eos_token_id = '</s>'"),
        ({"sliding_window": -1}, "sliding_window = -1 instead of a positive integer"),
    ],
)
def test_what_is_wrong_is_one_sentence_about_the_file(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(BrokenCheckpoint) as caught:
        read_model_config(write(tmp_path, **changes))
    assert sentence in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_config_that_is_no_json_object(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(BrokenCheckpoint, match=r"config\.json"):
        read_model_config(tmp_path)


def test_weights_in_one_file_or_several(tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").touch()
    (tmp_path / "a.safetensors").touch()
    assert [f.name for f in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    (tmp_path / "model.safetensors").touch()  # beside it, the others are something else
    assert [f.name for f in weight_files(tmp_path)] == ["model.safetensors"]
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [f.name for f in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"x": "one.safetensors", "y": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "one.safetensors").touch()
    with pytest.raises(BrokenCheckpoint, match=r"two\.safetensors is missing"):
        weight_files(tmp_path)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"x": "../x"}}])
def test_an_index_that_leads_nowhere(index: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BrokenCheckpoint, match=r"index\.json"):
        weight_files(tmp_path)


def test_only_pickled_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(BrokenCheckpoint, match=r"\.bin only.*convert them to safetensors"):
        weight_files(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpoint, match="no weights"):
        weight_files(tmp_path)
