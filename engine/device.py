"""Where and in which number format to compute, with how many threads, and what memory is free."""

from __future__ import annotations

import errno
import gc
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

from .errors import ConfigError, DeviceLost

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DEVICES = ("auto", "cpu", "cuda")
_LEAST_CAPABILITY = (8, 0)  # Ampere: bfloat16 in tensor cores, asynchronous copies


def pick_device(name: str) -> torch.device:
    """The device called `name`: "cpu", "cuda", or "auto" for a GPU where there is one that suits.

    Raises:
        ConfigError: the name is unknown, or there is no such GPU; the message says what is missing.
    """
    if name not in _DEVICES:
        raise ConfigError(f"--device {name} is not known; it must be auto, cpu or cuda.")
    if name == "cpu":
        return torch.device("cpu")
    lack = _lack_of_gpu()
    if lack is None:
        return torch.device("cuda", torch.cuda.current_device())
    if name == "cuda":
        raise ConfigError(f"--device cuda: {lack}; --device cpu computes without a GPU.")
    if torch.cuda.is_available():
        log.warning("computing on the CPU although there is a GPU: %s", lack)
    return torch.device("cpu")


def computes_on_cores(name: str) -> bool:
    """Whether `pick_device(name)` gives the CPU."""
    return name == "cpu" or (name == "auto" and _lack_of_gpu() is not None)


def _lack_of_gpu() -> str | None:
    """Why no GPU of this machine can be used; None where one can."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) was built without CUDA; install one that has it"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    except (RuntimeError, AssertionError) as error:  # no driver, an old one, no device for us
        told = str(error).strip().partition("\n")[0].rstrip(".")
        return (
            f"torch finds no GPU that it can use ({told}); the driver, or what a container is "
            f"given (--gpus all), is missing"
        )
    if capability < _LEAST_CAPABILITY:
        has, needs = (".".join(map(str, pair)) for pair in (capability, _LEAST_CAPABILITY))
        return f"the {name} has compute capability {has}, and octavo's kernels need {needs}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton, in which its kernels are written, is not installed"
    return None


def capability_of(device: torch.device) -> tuple[int, int]:
    """The GPU's compute capability, as (9, 0)."""
    return torch.cuda.get_device_capability(device)


def pick_dtype(name: str, stored: str, device: torch.device) -> torch.dtype:
    """The number format called `name`; "auto" keeps that of the checkpoint (`stored`) where the
    device computes it fast.

    On a CPU a float16 checkpoint becomes bfloat16, because CPUs compute float16 slowly if at all:
    it stays as small, and keeps the range of its numbers but 8 of their 11 bits. On a GPU a float32
    one does, because its tensor cores take 16 bits. --dtype float32 keeps all.
    """
    slow = "float16" if device.type == "cpu" else "float32"
    if name == "auto":
        name = "bfloat16" if stored == slow else stored
        if name not in _DTYPES:
            raise ConfigError(
                f"The checkpoint's weights are stored as {stored}, which octavo does not compute "
                f"in; choose --dtype bfloat16 or float32."
            )
    if name not in _DTYPES:
        raise ConfigError(
            f"--dtype {name} is not known; it must be auto, bfloat16, float16 or float32."
        )
    if name == "float16" and device.type == "cpu":
        raise ConfigError(
            "--dtype float16 is for GPUs, a CPU computes it slowly; use bfloat16 or float32."
        )
    return _DTYPES[name]


class Marker(Protocol):
    """A point in a stream of a device's work: the main one, or that of the `SideStream` that was
    entered. Where nothing was recorded nobody waits."""

    def record(self) -> None:
        """The work that has been given to the stream so far ends here."""

    def wait(self) -> None:
        """What is given to the stream from now on waits until the device has come here; the host
        does not."""

    def synchronize(self) -> None:
        """The host waits until the device has come here."""


def marker_of(device: torch.device) -> Callable[[], Marker] | None:
    """Makes markers; None where the device has no stream: its work is done when a call returns."""
    if device.type == "cpu":
        return None
    # Blocking: who waits sleeps, and leaves the core to the planner.
    return lambda: torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]


def has_streams(device: torch.device) -> bool:
    """Whether the device goes on with its work when a call that gave it some has returned."""
    return marker_of(device) is not None


def overlaps(name: str, device: torch.device) -> bool:
    """Whether the next step is to be planned and launched while the device computes one: `name` is
    "on", "off", or "auto" for where it gains.

    On a CPU it does not. A replayed step holds no lock that the planner waits for, but planner and
    kernels want the same cores, and a kernel waits for a thread whose core the planner has taken:
    random 15m, 64 streams on 2 cores, on and off in turn: 11 800 and 12 500 tokens/s; steps of
    110m, 1 sequence: 4.5 and 4.4 ms. Over HTTP, where the front end wants a core, too, 1 stream of
    110m has 0.94 of the tokens/s, 32 have 0.92; with a kernel thread that steps aside while the
    planner works 0.96 and 0.93. And who arrives would wait for one step more.
    """
    return name == "on" or (name == "auto" and has_streams(device))


def inter_token_target(device: torch.device) -> float:
    """Seconds between two tokens of a stream that suit a reader and that the device can hold."""
    return 0.1 if device.type == "cpu" else 0.03


def step_limits(device: torch.device) -> tuple[int, int]:
    """Sequences that run at the same time, and tokens of a step, that suit the device. A GPU reads
    its weights once for all of them, and takes thousands of tokens in the time of that."""
    return (64, 2048) if device.type == "cpu" else (256, 8192)


def available_cores() -> int:
    """Cores this process may use: its affinity, and the quotas of its control groups."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *map(int, _cpu_quotas())]))


def available_memory() -> int:
    """Bytes of host memory this process may still take: what the machine has available, and what
    its control groups leave, page cache that they would give back included."""
    words = _words("/proc/meminfo")
    available = int(words[words.index("MemAvailable:") + 1]) * 1024
    return max(0, min([available, *_memory_left()]))


class DeviceMemory(Protocol):
    """A GPU's own memory, in bytes."""

    @property
    def free_at_start(self) -> int:
        """What was free when this was made."""

    def free_and_total(self) -> tuple[int, int]:
        """Free now, for everybody, and in all."""

    def reset_peak(self) -> None:
        """Give back what the allocator holds without need, and begin to look for a new peak."""

    def peak(self) -> int:
        """The most that torch's allocator has held since then, after all work is done."""

    def reserved(self) -> int:
        """What it holds now."""


def memory_of(device: torch.device) -> DeviceMemory | None:
    """The device's own memory; None where it has none but the host's."""
    return None if device.type == "cpu" else _GpuMemory(device)


class _GpuMemory:
    """See `DeviceMemory`. It has not run on a GPU yet."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.free_at_start, _ = self.free_and_total()

    def free_and_total(self) -> tuple[int, int]:
        return torch.cuda.mem_get_info(self._device)

    def reset_peak(self) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_reserved(self._device)

    def reserved(self) -> int:
        return torch.cuda.memory_reserved(self._device)


class SideStream(Protocol):
    """A further stream of a device's work, beside the one that computes: nothing but a `Marker`
    makes one wait for the other."""

    def __enter__(self) -> object:
        """Work given inside goes to this stream."""

    def __exit__(self, *raised: object) -> object: ...

    def synchronize(self) -> None:
        """Wait until all is done that was given to this stream."""


def side_stream_of(device: torch.device) -> SideStream | None:
    """A further stream of the device; None where calls return when their work is done."""
    return None if device.type == "cpu" else _GpuStream(device)


class _GpuStream:
    """See `SideStream`. It has not run on a GPU yet."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._entered = torch.cuda.stream(self._stream)

    def __enter__(self) -> object:
        return self._entered.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *raised: object) -> object:
        return self._entered.__exit__(*raised)

    def synchronize(self) -> None:
        self._stream.synchronize()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is missing, of the host or of the device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch's CPU allocator and oneDNN have no class of their own for it.
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def check_alive(error: BaseException) -> None:
    """A GPU on which a kernel has gone wrong answers every later call with the same error.

    Raises:
        DeviceLost: that is what `error` says.
    """
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST):
        raise DeviceLost(f"The GPU is lost to this process: {error}") from error


_LOST = (
    "an illegal memory access was encountered",
    "device-side assert triggered",
    "unspecified launch failure",
    "misaligned address",
    "an illegal instruction was encountered",
    "the launch timed out and was terminated",
    "uncorrectable ECC error",
    "hardware stack error",
    "operation not supported on global/shared address space",
    "invalid program counter",
    "GPU is lost",
)


def without_gradients() -> AbstractContextManager[None]:
    """Nothing that this thread computes within is differentiated."""
    return torch.inference_mode()


def release_memory() -> None:
    """Give back what is held without need: cycles of dead objects, the allocator's caches."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
_CGROUP = "/sys/fs/cgroup"


def _groups() -> list[str]:
    """Folders of the control groups this process is in, version 2, from its own to the root."""
    own = next((w[3:] for w in _words("/proc/self/cgroup") if w.startswith("0::/")), "/")
    return [f"{_CGROUP}{path}".rstrip("/") for path in (own, *map(str, Path(own).parents))]


def _cpu_quotas() -> Iterator[float]:
    for group in _groups():
        match _words(f"{group}/cpu.max"):
            case [quota, period] if quota != "max":
                yield int(quota) / int(period)
    match _words(f"{_CGROUP}/cpu/cpu.cfs_quota_us") + _words(f"{_CGROUP}/cpu/cpu.cfs_period_us"):
        case [quota, period] if quota != "-1":
            yield int(quota) / int(period)


def _memory_left() -> Iterator[int]:
    groups = [(f"{group}/memory.max", f"{group}/memory.current", group) for group in _groups()]
    old = f"{_CGROUP}/memory"
    groups.append((f"{old}/memory.limit_in_bytes", f"{old}/memory.usage_in_bytes", old))
    for limit, used, group in groups:
        match _words(limit) + _words(used):
            case [most, now] if most != "max":
                statistics = _words(f"{group}/memory.stat")
                counted = dict(zip(statistics[::2], statistics[1::2], strict=False))
                yield int(most) - int(now) + int(counted.get("inactive_file", 0))


def _words(file: str) -> list[str]:
    """The words of a small file of the operating system's; none where there is no such file."""
    try:
        return Path(file).read_text("ascii").split()
    except OSError:
        return []
