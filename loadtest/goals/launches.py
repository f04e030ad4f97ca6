"""The command lines of octavo and its peers for one model: the same precision, the same context."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .servers import Launch

CONTEXT_TOKENS = 8192
_STREAMS = 64  # that a server must be able to run at the same time
_OFFLINE = {"HF_HUB_OFFLINE": "1"}
_LLAMA_CELLS = 16384  # of llama.cpp's KV cache: 64 streams of S, or the five of E


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """Where the peers are; None: not installed. `flags` are more words for a server, by name."""

    llama_server: Path | None = None
    vllm_python: Path | None = None
    transformers: Path | None = None
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def more(self, name: str) -> list[str]:
        """Of `octavo int8` those given for `octavo` and its own."""
        family = name.split()[0]
        own = self.flags.get(name, ()) if name != family else ()
        return [*self.flags.get(family, ()), *own]


def octavo(folder: Path, peers: Peers, kind: str = "") -> Launch:
    """`kind`: as it comes, or "plain", "int8" or "int4": these make no guesses, so that kernels are
    compared with kernels."""
    name = f"octavo {kind}".rstrip()
    chosen = ["--speculative", "none"] if kind else []
    chosen += ["--quantization", kind] if kind in ("int8", "int4") else []
    command = [sys.executable, "-m", "octavo.server.cli", "serve", str(folder)]
    command += ["--port", "{port}", "--served-model-name", "model", "--log-level", "warning"]
    command += ["--max-model-len", str(CONTEXT_TOKENS), "--max-num-seqs", str(_STREAMS)]
    return Launch(name=name, command=[*command, *chosen, *peers.more(name)], ready_path="/readyz")


def llama(folder: Path, peers: Peers, precision: str = "bf16") -> Launch:
    """llama.cpp's server on FOLDER/PRECISION.gguf; one KV cache that all its slots share."""
    name = "llama.cpp" if precision == "bf16" else f"llama.cpp {precision}"
    command = [str(peers.llama_server), "-m", str(folder / f"{precision}.gguf")]
    command += ["--host", "127.0.0.1", "--port", "{port}", "--alias", "model"]
    command += ["-c", str(_LLAMA_CELLS), "-np", str(_STREAMS), "--kv-unified"]
    command += ["-t", str(len(os.sched_getaffinity(0)))]
    return Launch(name=name, command=[*command, *peers.more(name)])


def vllm(folder: Path, peers: Peers, *, all_cores: bool = False) -> Launch:
    """vLLM with its own choice of cores, which leaves one to its front end, or with all of them."""
    name = "vllm all cores" if all_cores else "vllm"
    command = [str(peers.vllm_python), "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(folder), "--served-model-name", "model", "--dtype", "bfloat16"]
    command += ["--host", "127.0.0.1", "--port", "{port}", "--max-num-seqs", str(_STREAMS)]
    command += ["--max-model-len", str(CONTEXT_TOKENS), *peers.more(name)]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", **_OFFLINE}
    if all_cores:
        cores = sorted(os.sched_getaffinity(0))
        environment["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    return Launch(name=name, command=command, environment=environment)


def transformers(folder: Path, peers: Peers) -> Launch:
    """Continuous batching over a cache of stated size: by itself it takes most of the memory."""
    command = [str(peers.transformers), "serve", str(folder), "--device", "cpu"]
    command += ["--dtype", "bfloat16", "--continuous-batching", "--cb-block-size", "16"]
    command += ["--cb-num-blocks", "1024", "--cb-max-batch-tokens", "2048"]
    command += ["--host", "127.0.0.1", "--port", "{port}"]
    return Launch(
        name="transformers",
        command=[*command, *peers.more("transformers")],
        environment=_OFFLINE,
        model=str(folder),
    )
