"""Who guesses where nobody says it: whoever can change no answer by it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.engine.assembly import build_engine
from octavo.engine.config import EngineConfig
from octavo.kernels import registry
from octavo.kernels.cpu.library import levels

from .tiny import tiny_config

compiled = pytest.mark.skipif(not levels(), reason="the reference's sums depend on the batch")


def chosen(config: EngineConfig, caplog: pytest.LogCaptureFixture) -> str:
    """What the log says."""
    with caplog.at_level(logging.INFO):
        engine, capacity = build_engine(config, lambda *_: None)
    engine.stop()
    (line,) = [r.getMessage() for r in caplog.records if "speculative" in r.getMessage()]
    assert ("ngram" in line) == (capacity.longest_draft > 0)
    return line


@compiled
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_the_compiled_kernels_guess(
    quantization: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(tmp_path, quantization=quantization)
    assert config.speculative == "auto"
    assert "speculative decoding: ngram; it changes no answer" in chosen(config, caplog)


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"cpu_kernels": "reference"}, "sums of these kernels"),
        pytest.param({"kv_cache_dtype": "fp8"}, "8-bit floats", marks=compiled),
        pytest.param({"quantization": "fp8"}, "8-bit floats", marks=compiled),
        ({"speculative": "none"}, "as was asked"),
    ],
)
def test_who_could_change_an_answer_does_not(
    settings: dict[str, Any], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        line = chosen(tiny_config(tmp_path, **settings), caplog)
    except Exception as error:  # a CPU may not multiply such numbers: it says so after the choice
        (line,) = [r.getMessage() for r in caplog.records if "speculative" in r.getMessage()]
        assert "fp8" in str(error)
    assert "speculative decoding: none" in line
    assert reason in line


def test_who_asks_for_guesses_gets_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(tmp_path, cpu_kernels="reference", speculative="ngram")
    assert "speculative decoding: ngram; as was asked" in chosen(config, caplog)


@compiled
def test_sums_stand_alone_where_our_own_kernels_take_them() -> None:
    cpu = torch.device("cpu")
    assert registry.sums_alone(cpu)
    assert not registry.sums_alone(cpu, registry.providers_with("reference"))
    mixed = {"cpu": ("reference", f"cpu.{levels()[0]}")}
    assert not registry.sums_alone(cpu, mixed)
