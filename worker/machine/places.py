"""What runs where: for each kind of machine what the probe answers there, and what a worker falls back to.

    python -m worker.machine.places

Decides nothing: facts of a kind of machine go through the same functions as those of a real one (gpus.py, products.py),
and what comes out is a row. Prints the table of docs/devices.md, which a test holds to it. `tested` says on what
somebody has run it; where nobody has, the row is what the code will do, no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocol.errors import ConfigError
from worker.machine.gpus import Capability, Card, GpuFacts, GpuFailure, Trial, choose_gpu
from worker.machine.products import expected_products
from worker.options import check_device

CUDA: Final = "13.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One kind of machine."""

    name: str
    facts: GpuFacts
    system: str = "Linux, Windows"
    asked: str | None = None
    """What `--device` says."""
    tested: str = "no"


def _nvidia(capability: Capability, failure: GpuFailure | None = None) -> GpuFacts:
    trial = Trial(name="GPU", capability=capability, failure=failure, bf16=failure is None and capability >= (8, 0))
    cards = (Card(name="GPU", capability=capability),)
    return GpuFacts(
        torch_version=f"2.13.0+cu{CUDA.replace('.', '')}", torch_cuda=CUDA, trials=(trial,), cards=cards, driver="580.1"
    )


PLACES: Final = (
    Place(name="CPU, x86-64", facts=GpuFacts(), system="Linux", tested="yes: every figure of these pages"),
    Place(name="CPU, elsewhere", facts=GpuFacts(), system="Windows, macOS, Linux on ARM"),
    Place(name="NVIDIA Pascal, Volta (GTX 10, V100: 6.x, 7.0)", facts=_nvidia((6, 1), GpuFailure.NO_KERNELS)),
    Place(name="NVIDIA Turing (RTX 20, T4: 7.5)", facts=_nvidia((7, 5))),
    Place(name="NVIDIA Ampere, Ada (RTX 30, RTX 40, A100: 8.x)", facts=_nvidia((8, 6))),
    Place(name="NVIDIA Hopper (H100, H200: 9.0)", facts=_nvidia((9, 0))),
    Place(name="NVIDIA Blackwell (B200: 10.0)", facts=_nvidia((10, 0))),
    Place(name="NVIDIA Blackwell (RTX 50: 12.0)", facts=_nvidia((12, 0))),
    Place(
        name="NVIDIA, PyTorch without CUDA",
        facts=GpuFacts(cards=(Card(name="GPU", capability=(8, 9)),), driver="580.1"),
    ),
    Place(
        name="AMD, ROCm build of PyTorch",
        facts=GpuFacts(
            torch_version="2.13.0+rocm7.0",
            torch_hip="7.0",
            trials=(Trial(name="GPU", capability=(11, 0), bf16=True),),
        ),
        system="Linux",
    ),
    Place(name="AMD, any other PyTorch", facts=GpuFacts(others=("AMD",))),
    Place(name="Apple GPU (MPS)", facts=GpuFacts(others=("Apple",)), system="macOS"),
    Place(name="Apple GPU, `--device mps`", facts=GpuFacts(others=("Apple",)), system="macOS", asked="mps"),
    Place(name="Intel GPU (XPU)", facts=GpuFacts(others=("Intel",))),
    Place(name="Intel GPU, `--device xpu`", facts=GpuFacts(others=("Intel",)), asked="xpu"),
)
"""A new kind is a line here."""
HEADINGS: Final = ("machine", "system", "the probe answers", "matrices in", "experts' products", "tested")


def row_of(place: Place) -> tuple[str, ...]:
    """Cells, in the order of HEADINGS."""
    try:
        check_device(place.asked)
        choice = choose_gpu(place.facts, place.asked)
    except ConfigError as error:
        return place.name, place.system, f"refused: {error}", "–", "–", place.tested
    if choice.index is None:
        answer = f"cpu; {choice.notice}" if choice.notice else "cpu"
        return place.name, place.system, answer, "fp32", expected_products(None, bf16=False), place.tested
    trial = place.facts.trials[choice.index]
    capability = None if place.facts.torch_hip else trial.capability
    return (
        place.name,
        place.system,
        f"cuda:{choice.index}",
        "bf16" if trial.bf16 else "fp32",
        expected_products(capability, bf16=trial.bf16, is_gpu=True),
        place.tested,
    )


def table() -> str:
    """In Markdown."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *map(row_of, PLACES)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
