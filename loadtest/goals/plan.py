"""Who is measured with what: for each model its servers, and the scenarios each of them runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .launches import Peers, llama, octavo, transformers, vllm
from .servers import Launch

Scenarios = Sequence[str]
_NOT_GIVEN = "not there; needs {}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One server and the scenarios that are run against it, in their order."""

    launch: Launch
    scenarios: Scenarios


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that one model is measured with. `missing`: servers that cannot be, and why."""

    model: str
    parts: Sequence[Part]
    missing: Mapping[str, str] = field(default_factory=dict)
    offline: bool = False  # the LLM class on scenario C, too
    host_path: bool = False


def plan(model: str, folder: Path, peers: Peers) -> Plan:
    """What of `peers` is there is measured; quantized octavo and llama.cpp only where the goals
    ask for them."""
    parts: list[Part] = []
    missing: dict[str, str] = {}

    def add(name: str, flag: str, there: object, make: Callable[[], Launch], what: str) -> None:
        if there:
            parts.append(Part(launch=make(), scenarios=tuple(what)))
        else:
            missing[name] = _NOT_GIVEN.format(flag)

    server = peers.llama_server
    host = model == "15m"
    quantized = model == "110m"
    parts.append(
        Part(
            launch=octavo(folder, peers),
            scenarios=("s", "h") if host else tuple("abcde" if quantized else "abc"),
        )
    )
    kinds = ("plain", "int8", "int4") if quantized else () if host else ("plain",)
    for kind in kinds:
        parts.append(Part(launch=octavo(folder, peers, kind), scenarios=("a", "c")))
    more = "sh" if host else "abc"
    bf16 = server and (folder / "bf16.gguf").is_file()
    add("llama.cpp", "--llama-server and bf16.gguf", bf16, lambda: llama(folder, peers), more)
    if quantized:
        q4 = server and (folder / "q4_0.gguf").is_file()
        flag = "--llama-server and q4_0.gguf"
        add("llama.cpp q4_0", flag, q4, lambda: llama(folder, peers, "q4_0"), "ac")
    with_d = more + "d" if quantized else more
    add("vllm", "--vllm-python", peers.vllm_python, lambda: vllm(folder, peers), with_d)
    both = peers.vllm_python  # goals take the better of the two
    wide = "vllm all cores"
    add(wide, "--vllm-python", both, lambda: vllm(folder, peers, all_cores=True), with_d)
    if peers.transformers and not host:
        parts.append(Part(launch=transformers(folder, peers), scenarios=tuple(more)))
    return Plan(model=model, parts=parts, missing=missing, offline=quantized, host_path=host)
