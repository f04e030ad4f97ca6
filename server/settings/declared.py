"""`Settings`: every setting, declared once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from octavo.engine.config import LONGEST_DRAFT, EngineConfig

from . import kinds
from .declaration import Declaration, setting

BUNDLED = "bundled"
_ENGINE = EngineConfig(model="")  # its defaults are stated there


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything an operator can decide. Sizes in bytes, lengths in tokens, times in seconds."""

    model: str = setting(
        kinds.text("MODEL"),
        BUNDLED,
        "Model",
        "A checkpoint folder, a hub id (organisation/name), or `bundled`. May stand without flag.",
    )
    revision: str | None = setting(
        kinds.optional(kinds.text("REVISION"), "none"),
        None,
        "Model",
        "Branch, tag or commit of a hub id.",
    )
    served_model_name: tuple[str, ...] = setting(
        kinds.texts("NAME"),
        (),
        "Model",
        "Names that requests may use; the first is the one in answers. Unset: the model's own.",
    )
    load_format: str = setting(
        kinds.choice("safetensors", "dummy", also={"auto": "safetensors"}),
        _ENGINE.load_format,
        "Model",
        "Where weights come from; `dummy` makes random ones from config.json.",
    )
    dtype: str = setting(
        kinds.choice(
            "auto",
            "bfloat16",
            "float16",
            "float32",
            also={
                "bf16": "bfloat16",
                "fp16": "float16",
                "half": "float16",
                "fp32": "float32",
                "float": "float32",
            },
        ),
        _ENGINE.dtype,
        "Model",
        "Number format of weights and KV cache; `auto`: what the device computes fast.",
    )
    quantization: str = setting(
        kinds.choice("none", "int8", "int4", "fp8"),
        _ENGINE.quantization,
        "Model",
        "Round a float checkpoint's weights as they are loaded: less memory and time a token. "
        "`fp8` is for GPUs since Ada and Hopper; checkpoints of 8-bit floats need no setting.",
    )
    kv_cache_dtype: str = setting(
        kinds.choice("auto", "fp8", also={"fp8_e4m3": "fp8"}),
        _ENGINE.kv_cache_dtype,
        "Model",
        "Number format of the KV cache: `auto`, the model's, or `fp8`, half of 16 bits. On a CPU "
        "attention to a cache of fp8 is slow.",
    )
    max_model_len: int | None = setting(
        kinds.optional(kinds.tokens(), "auto"),
        _ENGINE.max_model_len,
        "Model",
        "Longest context, prompt and output together. `auto`: what checkpoint and memory allow.",
    )
    chat_template: str | None = setting(
        kinds.optional(kinds.text("FILE"), "none"),
        None,
        "Model",
        "A Jinja file, or the template itself, in place of the checkpoint's own.",
    )
    generation_config: str = setting(
        kinds.choice("auto", "none", also={"vllm": "none"}),
        "auto",
        "Model",
        "Whether the checkpoint's generation_config.json gives sampling defaults (`auto`).",
    )

    kv_memory: int | None = setting(
        kinds.optional(kinds.byte_size(2**10), "auto"),
        _ENGINE.kv_memory,
        "Memory",
        "Size of the KV cache. `auto`: from --memory-utilization.",
        aliases=("kv-cache-memory-bytes",),
    )
    memory_utilization: float | None = setting(
        kinds.optional(kinds.fraction(), "auto"),
        _ENGINE.memory_utilization,
        "Memory",
        "Share of the memory free at start, or of a whole GPU, that octavo may take, weights "
        "included. `auto`: 0.5 on a CPU, 0.9 on a GPU.",
        aliases=("gpu-memory-utilization",),
    )
    swap_space: int = setting(
        kinds.byte_size(bare_gib_below=1024),
        _ENGINE.swap_space,
        "Memory",
        "Host memory for KV blocks of preempted requests; a bare number is in GiB. 0: none.",
    )
    block_size: int = setting(
        kinds.integer(1, 256),
        _ENGINE.block_size,
        "Memory",
        "Tokens in a KV block. A CPU is slower with other numbers than multiples of 16.",
    )
    prefix_caching: bool = setting(
        kinds.switch(),
        _ENGINE.prefix_caching,
        "Memory",
        "Keep KV blocks of finished requests for prompts that begin alike.",
        aliases=("enable-prefix-caching",),
    )
    prefix_cache_salt: str = setting(
        kinds.choice("none", "key"),
        "none",
        "Memory",
        "`key`: a prompt finds only KV blocks of requests with the same API key, so that nobody "
        "can tell from times what others have asked. `cache_salt` of a request separates further.",
    )

    max_num_seqs: int | None = setting(
        kinds.optional(kinds.integer(1), "auto"),
        None,
        "Scheduling",
        "Sequences that run at the same time; auto: 64 on a CPU, 256 on a GPU.",
    )
    max_num_batched_tokens: int | None = setting(
        kinds.optional(kinds.tokens(), "auto"),
        None,
        "Scheduling",
        "Tokens computed in one step: longer prompts are cut into chunks; auto: 2048 on a CPU, "
        "8192 on a GPU.",
    )
    itl_target: float | None = setting(
        kinds.optional(kinds.seconds(), "auto"),
        _ENGINE.itl_target,
        "Scheduling",
        "Time between two tokens of a stream that prompts computed beside it may not exceed; 0: no "
        "limit, for throughput alone. `auto`: 0.1 on a CPU.",
    )
    scheduling_policy: str = setting(
        kinds.choice("fcfs", "priority"),
        _ENGINE.scheduling_policy,
        "Scheduling",
        "Who runs first: first come first served, or lowest `priority` first.",
    )
    preemption: str = setting(
        kinds.choice("auto", "recompute", "swap"),
        _ENGINE.preemption,
        "Scheduling",
        "What happens to the KV blocks of a preempted request; `auto`: whichever costs less.",
        aliases=("preemption-mode",),
    )
    overlap: str = setting(
        kinds.choice("auto", "on", "off", also={"1": "on", "0": "off"}),
        _ENGINE.overlap,
        "Scheduling",
        "Plan and launch the next step while the device computes one. `auto`: where it gains.",
    )
    speculative: str = setting(
        kinds.choice("auto", "ngram", "none"),
        _ENGINE.speculative,
        "Scheduling",
        "Guess tokens, and compute and verify several in one step, where that pays by what steps "
        "cost and how many guesses were right; answers change no more than by other company in the "
        "batch. `ngram`: what followed the last tokens when prompt or answer had them before. "
        "`auto`: `ngram` where no answer can change, on a CPU with compiled kernels and without "
        "8-bit floats; else `none`.",
    )
    num_speculative_tokens: int = setting(
        kinds.integer(1, LONGEST_DRAFT),
        _ENGINE.num_speculative_tokens,
        "Scheduling",
        "Tokens guessed at a time, at most.",
    )
    prompt_lookup_min: int = setting(
        kinds.integer(1),
        _ENGINE.prompt_lookup_min,
        "Scheduling",
        "Tokens at the end of a text that must have stood in it before for `ngram` to guess.",
        aliases=("ngram-prompt-lookup-min",),
    )
    prompt_lookup_max: int = setting(
        kinds.integer(1),
        _ENGINE.prompt_lookup_max,
        "Scheduling",
        "Of two such places `ngram` takes the one where more tokens agree, up to so many.",
        aliases=("ngram-prompt-lookup-max",),
    )
    max_queue_requests: int = setting(
        kinds.integer(1),
        1024,
        "Scheduling",
        "Requests that may wait for their first token; more are answered with 429.",
    )
    max_queue_tokens: int = setting(
        kinds.tokens(),
        2**20,
        "Scheduling",
        "Tokens of prompts that may wait for their first token; more are answered with 429.",
    )
    request_timeout: float | None = setting(
        kinds.optional(kinds.seconds(), "none"),
        None,
        "Scheduling",
        "Time that a request may take, from arrival to the end; it may ask for less. 0: no limit.",
    )

    max_engine_restarts: int = setting(
        kinds.integer(0),
        5,
        "Supervision",
        "Times that an engine is started again which died without a completed step, within ten "
        "minutes; at the next death the daemon ends.",
    )
    hang_timeout: float = setting(
        kinds.seconds(1.0),
        10.0,
        "Supervision",
        "Time without progress after which a busy engine is killed and restarted; a step that was "
        "predicted to be long has 20 times that.",
    )

    device: str = setting(
        kinds.choice("auto", "cpu", "cuda"),
        _ENGINE.device,
        "Compute",
        "Where the model is computed. `auto`: on a GPU where there is one that suits.",
    )
    attention_backend: str = setting(
        kinds.choice(
            "auto",
            "triton",
            "flashinfer",
            "fa3",
            "torch",
            also={"flash_attn": "fa3", "flash-attn-3": "fa3", "triton_attn": "triton"},
        ),
        _ENGINE.attention_backend,
        "Compute",
        "What computes attention on a GPU. `auto`: our Triton kernels; `flashinfer`, `fa3` where "
        "installed; `torch`, on any device: slow, to compare with.",
    )
    enforce_eager: bool = setting(
        kinds.switch(),
        _ENGINE.enforce_eager,
        "Compute",
        "Call kernels one by one; no decoding steps are recorded to be replayed.",
    )
    deterministic: bool = setting(
        kinds.switch(),
        _ENGINE.deterministic,
        "Compute",
        "Sums of a GPU's kernels, too, have an order that nothing else in a step changes, so that "
        "an answer is bitwise the same alone and in any company; what that costs has not been "
        "measured on one yet. On a CPU they always do.",
    )
    threads: int | None = setting(
        kinds.optional(kinds.integer(1), "auto"),
        _ENGINE.threads,
        "Compute",
        "Threads that compute. `auto`: as many as the container may use cores.",
    )
    pin_threads: bool = setting(
        kinds.switch(),
        _ENGINE.pin_threads,
        "Compute",
        "Tie each computing thread to a core; for a daemon that has its cores to itself.",
    )
    cpu_kernels: str = setting(
        kinds.choice("auto", "reference", "avx2", "avx512", "avx512_bf16"),
        _ENGINE.cpu_kernels,
        "Compute",
        "Instruction set of the kernels on a CPU. `auto`: the best it has; `reference`: torch.",
    )
    tensor_parallel_size: int = setting(
        kinds.integer(1, 1),
        1,
        "Compute",
        "Devices that share each layer; so far only 1.",
        aliases=("tp",),
    )

    host: str = setting(kinds.text("HOST"), "127.0.0.1", "Server", "Address to listen on.")
    port: int = setting(
        kinds.integer(0, 65535), 8000, "Server", "Port to listen on; 0 takes any free one."
    )
    api_key: tuple[str, ...] = setting(
        kinds.texts("KEY"),
        (),
        "Server",
        "Keys of which every request must carry one, except to probes. Better given as a variable "
        "or file than as a flag, which other users of the machine can see.",
        secret=True,
    )
    api_key_file: str | None = setting(
        kinds.optional(kinds.text("FILE"), "none"),
        None,
        "Server",
        "A file with more keys, one a line; lines that begin with # are comments.",
    )
    allowed_origins: tuple[str, ...] = setting(
        kinds.texts("ORIGIN"),
        ("*",),
        "Server",
        "Web origins whose pages may use the API (CORS).",
    )
    root_path: str | None = setting(
        kinds.optional(kinds.text("PATH"), "none"),
        None,
        "Server",
        "Path below which a reverse proxy shows the API.",
    )
    max_body_size: int = setting(
        kinds.byte_size(2**10),
        32 * 2**20,
        "Server",
        "Longest request body; a longer one is answered with 413.",
    )
    max_body_memory: int = setting(
        kinds.byte_size(2**10),
        256 * 2**20,
        "Server",
        "Request bodies held at the same time, all together, without the first 64 KiB of each; who "
        "brings more is answered with 429.",
    )
    body_timeout: float = setting(
        kinds.seconds(0.1),
        30.0,
        "Server",
        "Time in which a request body must have arrived, or else 408.",
    )
    header_timeout: float = setting(
        kinds.seconds(0.1),
        10.0,
        "Server",
        "Time in which the headers of a request must have arrived, or else 408.",
    )
    keep_alive_timeout: float = setting(
        kinds.seconds(0.1),
        75.0,
        "Server",
        "Silence between two requests after which a connection is closed.",
        aliases=("timeout-keep-alive",),
    )
    max_header_size: int = setting(
        kinds.byte_size(2**10),
        32 * 2**10,
        "Server",
        "Longest headers of a request, all together; longer ones are answered with 431.",
    )
    max_connections: int | None = setting(
        kinds.optional(kinds.integer(1), "auto"),
        None,
        "Server",
        "Connections at the same time; more are answered with 503. `auto`: as many as the limit "
        "of open files allows.",
    )
    ping_interval: float = setting(
        kinds.seconds(0.1),
        10.0,
        "Server",
        "Silence in a stream after which a comment keeps the connection alive.",
    )
    slow_reader_timeout: float = setting(
        kinds.seconds(1.0),
        60.0,
        "Server",
        "Time in which a client must take some of what is sent, or else its connection ends.",
    )
    drain_timeout: float = setting(
        kinds.seconds(),
        60.0,
        "Server",
        "Time for running requests to finish when the daemon is told to stop.",
    )
    trust_request_chat_template: bool = setting(
        kinds.switch(),
        False,
        "Server",
        "Let requests bring their own chat_template (it runs in a sandbox).",
    )

    log_format: str = setting(
        kinds.choice("text", "json"), "text", "Logs", "Lines for people, or one object a line."
    )
    log_level: str = setting(
        kinds.choice("debug", "info", "warning", "error", also={"warn": "warning"}),
        "info",
        "Logs",
        "The least important kind of line that is written.",
        aliases=("uvicorn-log-level",),
    )
    log_requests: bool = setting(
        kinds.switch(), True, "Logs", "Write a line for each finished request."
    )

    test_fault: tuple[str, ...] = setting(
        kinds.faults(),
        (),
        "Tests",
        "Makes the engine go wrong on purpose, as `exit@token=17` or `raise@step=7`; see "
        "engine/faults/fault.py. Never for service.",
    )

    def engine_config(self, folder: Path) -> EngineConfig:
        """What the engine is told; `folder` is where the model was found."""
        shared = {f.name for f in fields(EngineConfig)} & {f.name for f in fields(self)}
        values = {name: getattr(self, name) for name in shared - {"model"}}
        # What is left to the engine is None here, and whatever the engine calls that there.
        given = {name: value for name, value in values.items() if value is not None}
        return EngineConfig(model=str(folder), **given)


@cache
def declarations() -> tuple[Declaration, ...]:
    """All settings, in the order in which they are shown."""
    return tuple(Declaration(name=f.name, **f.metadata) for f in fields(Settings))
