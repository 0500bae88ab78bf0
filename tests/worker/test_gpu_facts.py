"""What is found out about GPUs where there is none, where sysfs shows one, and when torch fails on one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from worker.machine import gpu_facts
from worker.machine.gpu_facts import failure_of, gather_gpu_facts, try_product
from worker.machine.gpus import GpuFacts, GpuFailure, choose_gpu


def on_bus(root: Path, vendor: str, kind: str) -> None:
    device = root / "sys/bus/pci/devices" / f"0000:0{len(vendor + kind)}:{vendor}{kind}"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_any_card_says_nothing(tmp_path: Path) -> None:
    facts = gather_gpu_facts(tmp_path)
    assert (facts.trials, facts.cards, facts.driver) == ((), (), None)
    assert choose_gpu(facts, None).notice == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_card_on_the_bus_without_a_driver_is_seen(tmp_path: Path) -> None:
    on_bus(tmp_path, "0x10de", "0x040300")
    assert gather_gpu_facts(tmp_path).cards == (), "its sound output is not a card"
    on_bus(tmp_path, "0x10de", "0x030000")
    on_bus(tmp_path, "0x1002", "0x030000")
    facts = gather_gpu_facts(tmp_path)
    assert len(facts.cards) == 1
    assert facts.others == ("AMD",)
    assert "no driver of NVIDIA answers" in choose_gpu(facts, None).notice


@pytest.mark.parametrize(
    ("line", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024", "535.183.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build", "580.95.05"),
        ("something else", None),
    ],
)
def test_the_kernel_knows_the_driver_too(tmp_path: Path, line: str, driver: str | None) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(f"{line}\nGCC version: 12.3.0\n")
    assert gather_gpu_facts(tmp_path).driver == driver


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_that_works_passes_the_product(dtype: torch.dtype) -> None:
    try_product("cpu", dtype)


def test_a_device_that_multiplies_wrongly_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda left, _right: left + 0)
    with pytest.raises(gpu_facts.WrongProduct) as wrong:
        try_product("cpu", torch.float32)
    assert failure_of(wrong.value) is GpuFailure.WRONG


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        (
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors",
            GpuFailure.NO_KERNELS,
        ),
        ("CUDA error: invalid device function", GpuFailure.NO_KERNELS),
        ("CUDA out of memory. Tried to allocate 20.00 MiB", GpuFailure.MEMORY),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", GpuFailure.BUSY),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling cublasCreate", GpuFailure.OTHER),
    ],
)
def test_torchs_words_are_understood(text: str, failure: GpuFailure) -> None:
    assert failure_of(RuntimeError(text)) is failure


def fake_gpus(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], failing: dict[Any, str]) -> GpuFacts:
    """What is gathered where torch sees one GPU on which products in some dtypes fail."""

    def product(_device: str, dtype: torch.dtype) -> None:
        warnings.warn("found a GPU that is too old", stacklevel=1)
        if dtype in failing:
            raise RuntimeError(failing[dtype])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "NVIDIA Something")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: capability)
    monkeypatch.setattr(gpu_facts, "try_product", product)
    return gather_gpu_facts(Path("/nowhere"))


def test_a_card_that_dies_in_the_first_kernel_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = fake_gpus(monkeypatch, (6, 1), {torch.float32: "no kernel image is available"})
    assert [trial.failure for trial in facts.trials] == [GpuFailure.NO_KERNELS]
    assert choose_gpu(facts, None).index is None


@pytest.mark.parametrize(
    ("capability", "failing", "bf16"),
    [((8, 9), {}, True), ((7, 5), {}, False), ((8, 9), {torch.bfloat16: "CUBLAS_STATUS_NOT_SUPPORTED"}, False)],
)
def test_bf16_is_used_where_it_is_in_hardware_and_works(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], failing: dict[Any, str], bf16: bool
) -> None:
    facts = fake_gpus(monkeypatch, capability, failing)
    assert [(trial.failure, trial.bf16) for trial in facts.trials] == [(None, bf16)]


def test_a_driver_that_cannot_be_opened_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", broken)
    assert gather_gpu_facts(Path("/nowhere")).trials == ()


def test_nvidias_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = pytest.importorskip("pynvml")
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: b"550.54.14")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda _handle: "NVIDIA GeForce RTX 3060")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCudaComputeCapability", lambda _handle: (8, 6))
    facts = gather_gpu_facts(Path("/nowhere"))
    assert facts.driver == "550.54.14"
    assert [(card.name, card.capability) for card in facts.cards] == [("NVIDIA GeForce RTX 3060", (8, 6))]

    def mismatch() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    monkeypatch.setattr(pynvml, "nvmlInit", mismatch)
    assert gather_gpu_facts(Path("/nowhere")).driver_restart
