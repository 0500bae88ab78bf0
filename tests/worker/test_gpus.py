"""Which GPU is used, and what a volunteer is told about one that is not: cases, one a line."""

from __future__ import annotations

import dataclasses

import pytest

from protocol.errors import ConfigError
from worker.machine.gpus import Capability, Card, GpuFacts, GpuFailure, Trial, choose_gpu, choose_second
from worker.options import check_device

PIP = "python -m pip"
CURRENT = f'{PIP} install "torch==2.13.0+cu130" --index-url https://download.pytorch.org/whl/cu130'
OLDER = f'{PIP} install "torch==2.13.0+cu126" --index-url https://download.pytorch.org/whl/cu126'

PASCAL, TURING, ADA, BLACKWELL = (
    Card(name="NVIDIA GeForce GTX 1080", capability=(6, 1)),
    Card(name="NVIDIA GeForce RTX 2080", capability=(7, 5)),
    Card(name="NVIDIA GeForce RTX 4090", capability=(8, 9)),
    Card(name="NVIDIA GeForce RTX 5090", capability=(12, 0)),
)
KEPLER = Card(name="NVIDIA GeForce GT 710", capability=(3, 5))
NOTHING = GpuFacts()
CPU_WHEEL = GpuFacts(torch_version="2.13.0+cpu", torch_cuda=None)
CU126 = GpuFacts(torch_version="2.13.0+cu126", torch_cuda="12.6")
CU130 = GpuFacts(torch_version="2.13.0+cu130", torch_cuda="13.0")
ROCM = GpuFacts(torch_version="2.13.0+rocm7.2", torch_hip="7.2")


def here(facts: GpuFacts, card: Card | None, driver: str | None, **changes: object) -> GpuFacts:
    cards = () if card is None else (card,)
    return dataclasses.replace(facts, cards=cards, driver=driver, **changes)  # type: ignore[arg-type]


def tried(facts: GpuFacts, *trials: Trial) -> GpuFacts:
    return dataclasses.replace(facts, trials=trials, driver="580.95.05")


def gpu(card: Card, failure: GpuFailure | None = None) -> Trial:
    assert card.capability is not None
    return Trial(name=card.name, capability=card.capability, failure=failure)


UNUSABLE = {
    "a CPU wheel beside a new driver": (here(CPU_WHEEL, ADA, "580.95.05"), "built without CUDA", CURRENT),
    "a CPU wheel beside a middling driver": (here(CPU_WHEEL, ADA, "550.54.14"), "built without CUDA", OLDER),
    "a CPU wheel beside an old driver": (here(CPU_WHEEL, ADA, "470.1"), "driver (470.1) to 580 or newer", CURRENT),
    "a CPU wheel, a Pascal card": (here(CPU_WHEEL, PASCAL, "580.95.05"), "built without CUDA", OLDER),
    "a CPU wheel, a Pascal card, an old driver": (here(CPU_WHEEL, PASCAL, "470.1"), "(470.1) to 525 or newer", OLDER),
    "a CPU wheel, a Blackwell card": (here(CPU_WHEEL, BLACKWELL, "580.1"), "built without CUDA", CURRENT),
    "a CPU wheel, a Blackwell card, a middling driver": (here(CPU_WHEEL, BLACKWELL, "570.1"), "580 or newer", CURRENT),
    "a CPU wheel, a card of unknown make": (here(CPU_WHEEL, None, "550.1"), "an NVIDIA card is here", OLDER),
    "a ROCm wheel beside an NVIDIA card": (here(ROCM, ADA, "580.1"), "built for AMD's ROCm", CURRENT),
    "a driver too old for this build": (here(CU130, ADA, "535.183"), "CUDA 13.0 needs 580 or newer", OLDER),
    "a driver too old for any build": (here(CU130, ADA, "390.1"), "Update NVIDIA's driver (390.1) to 580", ""),
    "no driver": (here(CU130, Card(name="an NVIDIA card"), None), "Install NVIDIA's driver", CURRENT),
    "a driver that waits for a restart": (here(CU130, ADA, None, driver_restart=True), "restart it", ""),
    "a card that is hidden": (here(CU130, ADA, "580.1", hidden=True), "CUDA_VISIBLE_DEVICES", ""),
    "a card that does not open": (here(CU130, ADA, "580.1"), "cannot open it. Restart the machine", ""),
    "a card that no build knows": (here(CPU_WHEEL, KEPLER, "470.1"), "No build of PyTorch 2.13.0", ""),
    "no kernels for an older card": (tried(CU130, gpu(PASCAL, GpuFailure.NO_KERNELS)), "no kernels for it", OLDER),
    "no kernels for a newer card": (tried(CU126, gpu(BLACKWELL, GpuFailure.NO_KERNELS)), "no kernels for it", CURRENT),
    "no kernels in any build": (
        tried(CU126, gpu(KEPLER, GpuFailure.NO_KERNELS)),
        "compute capability 3.5: use the",
        "",
    ),
    "a full card": (tried(CU130, gpu(ADA, GpuFailure.MEMORY)), "its memory is full. Close what uses it", ""),
    "a card held by another": (tried(CU130, gpu(ADA, GpuFailure.BUSY)), "another program has it", ""),
    "a card that multiplies wrongly": (
        tried(CU130, gpu(ADA, GpuFailure.WRONG)),
        "came out wrong. Update its driver",
        "",
    ),
    "a card that fails": (tried(CU130, gpu(ADA, GpuFailure.OTHER)), "a matrix product on it failed. Update", ""),
    "an AMD card that fails": (tried(ROCM, gpu(ADA, GpuFailure.OTHER)), "AMD GPUs are used where they work", ""),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_card_that_cannot_be_used_is_told_with_what_mends_it(case: str) -> None:
    facts, told, line = UNUSABLE[case]
    choice = choose_gpu(facts, None)
    assert choice.index is None
    assert choice.notice.startswith("the GPU is NOT used, training goes on the CPU: ")
    assert told in choice.notice
    assert choice.notice.count("pip install") == (1 if line else 0), "a line only where one helps"
    assert line in choice.notice
    with pytest.raises(ConfigError) as refused:
        choose_gpu(facts, "cuda")
    assert choice.notice.partition("CPU: ")[2] in str(refused.value), "asked for, it is refused in the same words"


@pytest.mark.parametrize("card", [TURING, ADA, BLACKWELL, PASCAL])
def test_a_card_whose_product_comes_out_is_used_without_a_word(card: Card) -> None:
    facts = tried(CU130, gpu(card))
    for device in (None, "cuda", "cuda:0"):
        assert (choose_gpu(facts, device).index, choose_gpu(facts, device).notice) == (0, "")


def test_the_first_card_that_works_is_used_and_the_other_one_told() -> None:
    facts = tried(CU130, gpu(PASCAL, GpuFailure.NO_KERNELS), gpu(ADA))
    for device in (None, "cuda"):
        choice = choose_gpu(facts, device)
        assert choice.index == 1
        assert "cuda:0 (NVIDIA GeForce GTX 1080, compute capability 6.1) cannot be used" in choice.notice
    assert choose_gpu(facts, "cuda:1").notice == ""
    with pytest.raises(ConfigError, match=r"cuda:0 .*no kernels"):
        choose_gpu(facts, "cuda:0")


def test_a_card_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"cuda:7: this machine has cuda:0 \(NVIDIA GeForce RTX 4090\), cuda:1"):
        choose_gpu(tried(CU130, gpu(ADA), gpu(TURING)), "cuda:7")


def test_a_machine_without_a_gpu_has_nothing_to_tell_but_refuses_one() -> None:
    assert choose_gpu(NOTHING, None) == choose_gpu(CU130, None)
    assert choose_gpu(NOTHING, None).notice == ""
    with pytest.raises(ConfigError, match="no NVIDIA GPU is found on this machine; use --device cpu"):
        choose_gpu(NOTHING, "cuda")


@pytest.mark.parametrize("maker", ["AMD", "Intel", "Apple"])
def test_cards_of_other_makers_are_told_plainly(maker: str) -> None:
    facts = dataclasses.replace(CPU_WHEEL, others=(maker,))
    assert f"{maker} GPUs are " in choose_gpu(facts, None).notice
    with pytest.raises(ConfigError, match=f"{maker} GPUs are "):
        choose_gpu(facts, "cuda:0")


@pytest.mark.parametrize(
    ("capability", "line"), [((8, 7), CURRENT), ((11, 0), CURRENT), ((12, 1), CURRENT), ((7, 5), ""), ((5, 3), "")]
)
def test_builds_for_arm_begin_at_another_generation(capability: Capability, line: str) -> None:
    card = Card(name="NVIDIA something", capability=capability)
    notice = choose_gpu(here(CPU_WHEEL, card, "580.1", arm=True), None).notice
    assert line in notice
    assert ("No build of PyTorch" in notice) == (not line)


def test_a_second_card_must_be_another_one_and_alike() -> None:
    """Products are taken on both, and one lease has one arithmetic."""
    facts = tried(CU130, gpu(ADA), gpu(ADA), gpu(TURING), gpu(ADA, GpuFailure.MEMORY))
    assert choose_second(facts, 0, "cuda:1") == 1
    for device, why in {
        "cuda:0": "its own second card",
        "cuda:2": "must be alike, got NVIDIA GeForce RTX 4090 and NVIDIA GeForce RTX 2080",
        "cuda:3": "its memory is full",
        "cuda:4": "this machine has",
    }.items():
        with pytest.raises(ConfigError, match=why):
            choose_second(facts, 0, device)


def test_two_cards_are_named_by_their_numbers() -> None:
    check_device("cuda:0,cuda:1")
    for device in ("cuda,cuda:1", "cuda:0,", "cuda:0,cpu", "cuda:0,cuda:1,cuda:2", "cpu,cuda:0"):
        with pytest.raises(ConfigError, match="expected cpu, cuda or cuda:N"):
            check_device(device)
