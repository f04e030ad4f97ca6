"""From an `EngineConfig` to a `Runner` that is ready for its first plan."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from octavo.kernels import registry
from octavo.kernels.ops import NotRecordable, Ops

from ..checkpoint import ModelConfig, read_model_config, weight_files
from ..config import LONGEST_DRAFT, EngineConfig
from ..device import (
    DeviceMemory,
    available_cores,
    available_memory,
    has_streams,
    inter_token_target,
    memory_of,
    overlaps,
    pick_device,
    pick_dtype,
    step_limits,
)
from ..errors import ConfigError
from ..executor.base import Capacity, Progress
from ..kv_cache import KVCache, block_bytes
from ..models.base import Model
from ..quantization.rounded import rounded_bytes
from ..sampling.grammar import GrammarCompiler
from ..sampling.grammar_rule import GrammarRule
from ..sampling.rules import standard_rules
from ..sampling.sampler import Sampler
from ..speculative.choice import proposer_for, settled
from ..transfer import transfer_to
from ..weights import load_model
from .computer import Computer
from .graphs import Eager, Forwards, GpuRecorder, Graphed
from .inputs import FromHost, Inputs
from .ledger import allocated
from .measuring import take_stock
from .memory import (
    MemoryPlan,
    activation_bytes,
    plan_device,
    plan_memory,
    size,
)
from .padding import Key, StaticBatch, keys_for
from .prices import seconds_per_swap, seconds_per_token
from .replaying import Replayed
from .resident import Resident
from .runner import Runner
from .sequences import SequenceTable
from .stream import AtOnce, Stream

log = logging.getLogger(__name__)


def launch(
    config: EngineConfig,
    progress: Progress,
    stream: Stream | None = None,
    providers: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[Runner, Capacity]:
    """Plan the memory, load the model, allocate the KV cache, measure.

    `stream`: where the device is given its work; None for at once. `providers`: of kernels, by
    device type; None for those that `config` asks for. To be called on that stream: torch's worker
    threads belong to their caller.

    Raises:
        ConfigError: the checkpoint cannot be loaded, or it does not fit.
    """
    stream = stream or AtOnce()
    numbers = read_model_config(config.model)
    device = pick_device(config.device)
    sequences, step_tokens = step_limits(device)
    config = replace(
        config,
        max_num_seqs=config.max_num_seqs or sequences,
        max_num_batched_tokens=config.max_num_batched_tokens or step_tokens,
    )
    dtype = pick_dtype(config.dtype, numbers.dtype, device)
    kv_dtype = torch.float8_e4m3fn if config.kv_cache_dtype == "fp8" else dtype
    progress("preparing kernels", 0, 0)
    ops, sums_alone = _ops(config, device, providers)
    gpu = memory_of(device)
    config, reason = settled(config, numbers, gpu=gpu is not None, sums_alone=sums_alone)
    log.info("speculative decoding: %s; %s", config.speculative, reason)
    proposer = proposer_for(config)
    memory = None if gpu is not None else _plan(config, numbers, dtype, kv_dtype)
    threads = config.threads or available_cores()
    ops.set_threads(threads, pin=config.pin_threads)
    model = load_model(
        config.model,
        dtype=dtype,
        device=device,
        ops=ops,
        progress=progress,
        load_format=config.load_format,
        quantization=config.quantization,
        attention=config.attention_backend,
        kv_dtype=kv_dtype,
        longest=memory.max_model_len if memory is not None else config.max_model_len,
    )
    block = _block(config, numbers, kv_dtype)
    weight_bytes = _held_bytes(config, numbers, dtype, model.weight_bytes)
    transfer = transfer_to(device)

    def make_cache(num_blocks: int, num_host_blocks: int = 0) -> KVCache:
        return KVCache(
            model.config,
            ops,
            num_blocks=num_blocks,
            block_size=config.block_size,
            dtype=kv_dtype,
            device=device,
            num_host_blocks=num_host_blocks,
        )

    if memory is not None:
        progress("allocating the KV cache", 0, 0)
        kv = make_cache(memory.num_blocks, memory.num_host_blocks)
        parts = {"weights": weight_bytes, "kv_cache": memory.num_blocks * block}
    else:
        assert gpu is not None
        progress("measuring the memory", 0, 0)
        keys = _graph_keys(config, model)
        ledger = take_stock(
            config, model, gpu, make_cache(1), ops, transfer, stream, graphs=len(keys)
        )
        memory = plan_device(
            config, numbers, ledger, host_available=available_memory(), block=block
        )
        progress("allocating the KV cache", 0, 0)
        kv, num_blocks = allocated(
            partial(make_cache, num_host_blocks=memory.num_host_blocks),
            memory.num_blocks,
            block=block,
            least=-(-memory.max_model_len // config.block_size),
            free=lambda: gpu.free_and_total()[0],
        )
        memory = replace(memory, num_blocks=num_blocks)
        parts = dict(ledger.entries(num_blocks * block))
    log.info("memory: %s", ", ".join(f"{part} {size(count)}" for part, count in parts.items()))
    rules = standard_rules(numbers.vocab_size, numbers.eos_token_ids, ops, rows=config.max_num_seqs)
    compiler = GrammarCompiler.from_folder(
        config.model, vocab_size=numbers.vocab_size, stop_ids=numbers.eos_token_ids
    )
    grammar = GrammarRule(numbers.vocab_size, compiler, ops.allow_only, threads=threads)
    table = SequenceTable(
        rows=config.max_num_seqs, longest=memory.max_model_len, block_size=config.block_size
    )
    keys = _graph_keys(config, model, memory.max_model_len)
    room = _room(config, keys, memory.max_model_len, device)
    inputs: Inputs
    if has_streams(device):
        inputs = Resident(table, config.block_size, transfer, ops.build_step, room)
    else:
        place = None if overlaps(config.overlap, device) else room
        inputs = FromHost(table, config.block_size, transfer, place)
    forwards = _forwards(model, kv, gpu, ops, keys, room, parts.get("graphs_reserved", 0))
    computer = Computer(
        model=model,
        kv=kv,
        sampler=Sampler(
            numbers.vocab_size,
            rules,
            ops,
            grammar=grammar,
            unseen=has_streams(device),
            draws=forwards.draw,
        ),
        table=table,
        inputs=inputs,
        transfer=transfer,
        stream=stream,
        forwards=forwards,
        proposer=proposer,
    )
    progress("measuring", 0, 0)
    tokens = min(config.max_num_batched_tokens, memory.max_model_len - 1)
    capacity = Capacity(
        num_blocks=memory.num_blocks,
        block_size=config.block_size,
        num_host_blocks=memory.num_host_blocks,
        max_model_len=memory.max_model_len,
        vocab_size=numbers.vocab_size,
        eos_token_ids=numbers.eos_token_ids,
        recompute_seconds_per_token=seconds_per_token(computer, config.block_size, tokens),
        swap_seconds_per_block=seconds_per_swap(kv, memory),
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        kv_bytes=memory.num_blocks * block,
        weight_bytes=weight_bytes,
        parameters=model.parameter_count,
        memory=parts,
        itl_target_seconds=inter_token_target(device),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        longest_draft=config.longest_draft,
        most_draws=_most_draws(config, gpu),
        overlap=int(overlaps(config.overlap, device)),
    )
    return Runner(kv, computer, stream, forwards), capacity


def _ops(
    config: EngineConfig, device: torch.device, providers: Mapping[str, tuple[str, ...]] | None
) -> tuple[Ops, bool]:
    """The kernels, and whether `registry.sums_alone`."""
    if config.deterministic and config.attention_backend not in ("auto", "triton"):
        raise ConfigError(
            f"--deterministic: the order of sums of --attention-backend "
            f"{config.attention_backend} is not known; use --attention-backend auto."
        )
    try:
        providers = providers or registry.providers_with(
            config.cpu_kernels, deterministic=config.deterministic
        )
        ops = registry.resolve(device, providers)
    except NotImplementedError as error:
        raise ConfigError(f"--cpu-kernels {config.cpu_kernels}: {error}") from None
    given: defaultdict[str, list[str]] = defaultdict(list)
    for op, provider in registry.explain(device, providers).items():
        given[provider].append(op)
    told = "; ".join(f"{provider}: {', '.join(names)}" for provider, names in given.items())
    log.info("kernels on %s are from %s", device, told)
    return ops, registry.sums_alone(device, providers)


def _graph_keys(config: EngineConfig, model: Model, longest: int | None = None) -> tuple[Key, ...]:
    """The graphs to record; none where they cannot be, or are not wanted."""
    if config.enforce_eager or not model.replayable:
        return ()
    longest = longest or config.max_model_len or model.config.context_length
    queries = (1, 1 + config.longest_draft) if config.longest_draft else (1,)
    return keys_for(config.max_num_seqs, longest, queries)


def _room(
    config: EngineConfig, keys: tuple[Key, ...], longest: int, device: torch.device
) -> StaticBatch:
    """Where the batches of steps lie."""
    return StaticBatch(
        rows=max([key.rows for key in keys] or [config.max_num_seqs]),
        queries=max([key.queries for key in keys] or [1]),
        tokens=max([key.rows * key.queries for key in keys], default=0),
        longest=longest,
        block_size=config.block_size,
        device=device,
        room=config.max_num_batched_tokens,
    )


def _forwards(
    model: Model,
    kv: KVCache,
    gpu: DeviceMemory | None,
    ops: Ops,
    keys: tuple[Key, ...],
    room: StaticBatch,
    reserved: int,
) -> Forwards:
    """What steps are computed with. `gpu`: where they are; None for a CPU. `reserved`: bytes for
    graphs."""
    eager = Eager(model, kv)
    if not keys:
        return eager
    if gpu is not None:
        recorder = GpuRecorder(room.device)
        return Graphed(eager, recorder, keys, room, draw=ops.draw, reserved=reserved)
    try:
        return Replayed(eager, ops.recorder(), room)
    except NotRecordable as why:
        log.warning("decoding steps are computed kernel by kernel: %s", why)
        return eager


def _plan(
    config: EngineConfig, numbers: ModelConfig, dtype: torch.dtype, kv_dtype: torch.dtype
) -> MemoryPlan:
    loading = _weight_bytes(config, numbers, dtype)
    return plan_memory(
        config,
        numbers,
        available=available_memory(),
        weights=_held_bytes(config, numbers, dtype, loading),
        loading=loading,
        activations=activation_bytes(
            numbers,
            tokens=config.max_num_batched_tokens,
            sequences=config.max_num_seqs,
            draws=_most_draws(config, None),
            longest=config.max_model_len or numbers.context_length,
            itemsize=dtype.itemsize,
        ),
        block=_block(config, numbers, kv_dtype),
    )


def _most_draws(config: EngineConfig, gpu: DeviceMemory | None) -> int:
    """Tokens that one step draws, guesses among them. A CPU's guesses take places that no sequence
    has: many more are worth nothing, and their logits would take the room of a KV cache."""
    most = max(config.max_num_seqs, 1 + LONGEST_DRAFT if config.longest_draft else 0)
    if gpu is not None:
        most = config.max_num_seqs * (1 + config.longest_draft)
    return min(most, config.max_num_batched_tokens)


def _block(config: EngineConfig, numbers: ModelConfig, dtype: torch.dtype) -> int:
    return block_bytes(numbers, block_size=config.block_size, dtype=dtype)


def _held_bytes(config: EngineConfig, numbers: ModelConfig, dtype: torch.dtype, loaded: int) -> int:
    """What is left of weights of so many bytes when they have been rounded."""
    embeddings = numbers.vocab_size * numbers.hidden_size * dtype.itemsize
    return rounded_bytes(
        loaded,
        left=0 if numbers.tied_embeddings else embeddings,
        quantization=config.quantization,
        itemsize=dtype.itemsize,
    )


def _weight_bytes(config: EngineConfig, numbers: ModelConfig, dtype: torch.dtype) -> int:
    """What the weights will take, before they are read: from the size of their files, or for
    random weights from the shape of the model."""
    if config.load_format == "dummy":
        size = numbers.hidden_size
        heads = (2 * numbers.heads + 2 * numbers.kv_heads) * numbers.head_dim
        layer = size * (heads + 3 * numbers.intermediate_size + 2)
        embeddings = size * numbers.vocab_size * (1 if numbers.tied_embeddings else 2)
        return (embeddings + numbers.layers * layer) * dtype.itemsize
    stored = sum(file.stat().st_size for file in weight_files(config.model))
    return stored * dtype.itemsize // (4 if numbers.dtype == "float32" else 2)
