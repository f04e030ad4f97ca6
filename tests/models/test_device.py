"""Device, number format, cores and memory, as settings and the operating system say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from octavo.engine import device
from octavo.engine.errors import ConfigError


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Files of the operating system, by path; those not in it do not exist."""
    files = {"/proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 800 kB\n"}

    def words(file: str) -> list[str]:
        return files.get(file, "").split()

    monkeypatch.setattr(device, "_words", words)
    return files


CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_the_dtype_is_the_checkpoints_unless_told() -> None:
    assert device.pick_dtype("auto", "float32", CPU) is torch.float32
    assert device.pick_dtype("auto", "bfloat16", CPU) is torch.bfloat16
    assert device.pick_dtype("auto", "float16", CPU) is torch.bfloat16
    assert device.pick_dtype("float32", "bfloat16", CPU) is torch.float32
    assert device.pick_dtype("bfloat16", "float32", CPU) is torch.bfloat16


def test_a_gpu_computes_in_sixteen_bits_unless_told() -> None:
    assert device.pick_dtype("auto", "float32", GPU) is torch.bfloat16
    assert device.pick_dtype("auto", "float16", GPU) is torch.float16
    assert device.pick_dtype("float16", "bfloat16", GPU) is torch.float16
    assert device.pick_dtype("float32", "bfloat16", GPU) is torch.float32


def test_what_is_unknown_is_refused_with_what_is_known() -> None:
    with pytest.raises(ConfigError, match=r"--dtype int4 .* auto, bfloat16, float16 or float32"):
        device.pick_dtype("int4", "float32", CPU)
    with pytest.raises(ConfigError, match=r"--dtype float16 is for GPUs"):
        device.pick_dtype("float16", "float16", CPU)
    with pytest.raises(ConfigError, match=r"stored as float8_e4m3fn.*--dtype bfloat16 or float32"):
        device.pick_dtype("auto", "float8_e4m3fn", CPU)
    with pytest.raises(ConfigError, match=r"--device tpu .* auto, cpu or cuda"):
        device.pick_device("tpu")


class FakeGpu:
    """What torch says of a machine's GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capability = (9, 0)
        self.trouble: Exception | None = None
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "init", self.init)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: self.trouble is None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: self.capability)
        monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: self)

    def init(self) -> None:
        if self.trouble is not None:
            raise self.trouble


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch)


def test_a_gpu_that_suits_is_taken_unless_told(gpu: FakeGpu) -> None:
    assert device.pick_device("auto") == device.pick_device("cuda") == GPU
    assert device.pick_device("cpu") == CPU


def test_a_torch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert device.pick_device("auto") == CPU
    with pytest.raises(ConfigError, match=r"--device cuda: this torch .* built without CUDA"):
        device.pick_device("cuda")


def test_a_machine_without_a_driver(gpu: FakeGpu) -> None:
    gpu.trouble = RuntimeError("Found no NVIDIA driver on your system. Please check\nmore")
    assert device.pick_device("auto") == CPU
    with pytest.raises(ConfigError, match=r"Found no NVIDIA driver .* --device cpu computes"):
        device.pick_device("cuda")


def test_a_gpu_that_is_too_old(gpu: FakeGpu, caplog: pytest.LogCaptureFixture) -> None:
    gpu.capability = (7, 5)
    assert device.pick_device("auto") == CPU
    assert "NVIDIA Test has compute capability 7.5" in caplog.text
    with pytest.raises(ConfigError, match=r"has compute capability 7\.5, .* need 8\.0"):
        device.pick_device("cuda")


def test_a_machine_without_triton(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="package triton"):
        device.pick_device("cuda")


@pytest.mark.parametrize(
    ("quota", "cores"), [("", 8), ("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1)]
)
def test_cores_follow_affinity_and_quota(
    quota: str, cores: int, system: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    system["/sys/fs/cgroup/cpu.max"] = quota
    assert device.available_cores() == cores


def test_cores_follow_an_old_containers_quota(
    system: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    system["/sys/fs/cgroup/cpu/cpu.cfs_quota_us"] = "-1"
    system["/sys/fs/cgroup/cpu/cpu.cfs_period_us"] = "100000"
    assert device.available_cores() == 8
    system["/sys/fs/cgroup/cpu/cpu.cfs_quota_us"] = "300000"
    assert device.available_cores() == 3


def test_memory_is_the_machines_or_the_containers_whichever_is_less(
    system: dict[str, str],
) -> None:
    assert device.available_memory() == 800 * 1024
    system["/sys/fs/cgroup/memory.max"] = "max"
    system["/sys/fs/cgroup/memory.current"] = "5000"
    assert device.available_memory() == 800 * 1024
    system["/sys/fs/cgroup/memory.max"] = "400000"
    assert device.available_memory() == 395_000
    # Page cache is charged to the container, but given back when asked.
    system["/sys/fs/cgroup/memory.stat"] = "anon 1000\ninactive_file 3000\n"
    assert device.available_memory() == 398_000
    system["/sys/fs/cgroup/memory.current"] = "500000"
    assert device.available_memory() == 0


def test_the_limits_of_every_group_around_this_process_count(
    system: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    system["/proc/self/cgroup"] = "0::/system.slice/octavo.service\n"
    own, slice_ = "/sys/fs/cgroup/system.slice/octavo.service", "/sys/fs/cgroup/system.slice"
    system[f"{own}/cpu.max"] = "400000 100000"
    assert device.available_cores() == 4
    system[f"{slice_}/cpu.max"] = "300000 100000"
    assert device.available_cores() == 3
    system[f"{slice_}/memory.max"], system[f"{slice_}/memory.current"] = "9000", "2000"
    assert device.available_memory() == 7000
    system[f"{own}/memory.max"], system[f"{own}/memory.current"] = "6000", "1000"
    assert device.available_memory() == 5000


def test_the_machine_at_hand_answers() -> None:
    assert device.available_cores() >= 1
    if Path("/proc/meminfo").exists():
        assert device.available_memory() > 1 << 20
