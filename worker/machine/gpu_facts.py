"""What is to be found out about this machine's GPUs: from torch, from NVIDIA's driver, from the bus.

Decides nothing (gpus.py does). Tries one small matrix product on each GPU that torch sees, in every dtype that
training uses: a driver that is too old, a build without kernels for the card and a card that another program holds all
show there, and not in the first lease. Reads /proc and /sys, loads NVIDIA's management library, uses the GPUs.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import warnings
from pathlib import Path

import structlog
import torch

from worker.machine.arithmetic import multiplies_bf16
from worker.machine.gpus import Card, GpuFacts, GpuFailure, Trial

PRODUCT_SIZE = 64  # a power of two: the product of matrices of ones is exact in every dtype
_NVIDIA, _AMD = "0x10de", "0x1002"
_DISPLAY_CLASSES = ("0x0300", "0x0302", "0x0380")  # VGA, 3D and other display controllers

log = structlog.get_logger()


def gather_gpu_facts(root: Path = Path("/")) -> GpuFacts:
    """Look at every source. What one of them does not know, it leaves out; none of them raises."""
    cards, driver, restart = _ask_driver()
    makers = _makers_on_bus(root / "sys/bus/pci/devices")
    if not cards and _NVIDIA in makers:
        cards = (Card(name="an NVIDIA card"),)
    return GpuFacts(
        torch_version=torch.__version__,
        torch_cuda=torch.version.cuda,
        torch_hip=torch.version.hip,
        trials=_trials(),
        cards=cards,
        driver=driver or _driver_of_kernel(root / "proc/driver/nvidia/version"),
        driver_restart=restart,
        hidden="CUDA_VISIBLE_DEVICES" in os.environ,
        others=_others(makers),
        arm=platform.machine().lower() in ("aarch64", "arm64"),
        pip=f"{sys.executable or 'python'} -m pip",
    )


def _trials() -> tuple[Trial, ...]:
    # torch tells of old drivers and missing kernels by warnings; they become sentences of ours.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        except RuntimeError as error:
            log.debug("gpu_not_opened", detail=str(error))
            return ()
        return tuple(_trial(index) for index in range(count))


def _trial(index: int) -> Trial:
    name, capability = f"GPU {index}", (0, 0)
    try:
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        try_product(f"cuda:{index}", torch.float32)
    except Exception as error:  # torch has no narrower kind for what a driver may say
        failure, detail = failure_of(error), f"{type(error).__name__}: {error}"
        log.debug("gpu_product_failed", device=f"cuda:{index}", detail=detail)
        return Trial(name=name, capability=capability, failure=failure, detail=detail[:500])
    bf16 = False
    if multiplies_bf16(torch.device("cuda", index)):
        with contextlib.suppress(Exception):  # then fp32 it is
            try_product(f"cuda:{index}", torch.bfloat16)
            bf16 = True
    return Trial(name=name, capability=capability, bf16=bf16)


class WrongProduct(Exception):
    """The device answered, with something else than the product."""


def try_product(device: str, dtype: torch.dtype) -> None:
    """Multiply two matrices of ones on `device`, with a gradient; raises what the device makes of it."""
    ones = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, device=device, dtype=dtype, requires_grad=True)
    product = ones @ ones
    torch.autograd.backward(product.sum())
    wanted = torch.full((PRODUCT_SIZE, PRODUCT_SIZE), float(PRODUCT_SIZE))
    assert ones.grad is not None
    if not torch.equal(product.detach().cpu().float(), wanted):
        raise WrongProduct(f"{dtype} on {device}")
    if not torch.equal(ones.grad.cpu().float(), 2 * wanted):
        raise WrongProduct(f"gradient in {dtype} on {device}")


def failure_of(error: Exception) -> GpuFailure:
    """What kind of failure torch speaks of. It has one class of errors for all, so its words decide."""
    if isinstance(error, WrongProduct):
        return GpuFailure.WRONG
    text = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in text:
        return GpuFailure.MEMORY
    if "busy or unavailable" in text:
        return GpuFailure.BUSY
    if "no kernel image" in text or "architecture mismatch" in text or "invalid device function" in text:
        return GpuFailure.NO_KERNELS
    return GpuFailure.OTHER


def _ask_driver() -> tuple[tuple[Card, ...], str | None, bool]:
    """NVIDIA's cards, the driver's version, and whether the driver waits for a restart."""
    try:
        import pynvml
    except ImportError:
        return (), None, False
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), None, error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    try:
        driver = _decoded(pynvml.nvmlSystemGetDriverVersion())
        cards = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name, capability = _decoded(pynvml.nvmlDeviceGetName(handle)), None
            with contextlib.suppress(pynvml.NVMLError):
                major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
                capability = (int(major), int(minor))
            cards.append(Card(name=name, capability=capability))
        return tuple(cards), driver, False
    except pynvml.NVMLError as error:
        log.debug("nvml_failed", detail=str(error))
        return (), None, False
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _decoded(text: str | bytes) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def _driver_of_kernel(path: Path) -> str | None:
    """The version of the driver that the kernel has loaded: the first word of its line that looks like one."""
    try:
        words = path.read_text(errors="replace").split("\n", 1)[0].split()
    except OSError:
        return None
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdecimal()), None)


def _makers_on_bus(folder: Path) -> frozenset[str]:
    """Makers of the display controllers on the PCI bus."""
    found = set()
    try:
        devices = sorted(folder.iterdir())
    except OSError:
        return frozenset()
    for device in devices:
        with contextlib.suppress(OSError):
            if (device / "class").read_text().startswith(_DISPLAY_CLASSES):
                found.add((device / "vendor").read_text().strip())
    return frozenset(found)


def _others(makers: frozenset[str]) -> tuple[str, ...]:
    found = ["AMD"] if _AMD in makers else []
    with contextlib.suppress(Exception):  # an answer from a part of torch that nobody here uses
        found += ["Intel"] if torch.xpu.is_available() else []
        found += ["Apple"] if torch.backends.mps.is_available() else []
    return tuple(found)
