"""Which GPU this worker trains on, and, where none can be used, why not and what mends it: a table, as a function.

Decides from facts alone (gpu_facts.py gathers them) and touches nothing. Holds always: a GPU is used only if a
matrix product on it came out right; a card that is here and not used is told, never passed over in silence; whoever
asked for a GPU by name gets that one or the reason. Sources: the CUDA support matrix in PyTorch's RELEASE.md for 2.13
(wheels for CUDA 12.6, 13.0 and, experimentally, 13.2), NVIDIA's "CUDA Compatibility" (drivers: 525 for 12.x, 580 for
13.x). Compiled code for x.y also runs on x.z with z above y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from protocol.errors import ConfigError

Capability = tuple[int, int]
"""NVIDIA's compute capability: the generation of a card, as (8, 9)."""

DRIVER_OF_CUDA = {12: 525, 13: 580}
"""The oldest driver branch that runs programs of a CUDA release, on Linux and on Windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Build:
    """One published build of PyTorch."""

    tag: str
    cuda: int
    lowest: Capability
    highest_major: int
    lowest_arm: Capability = (8, 0)


OLDER, CURRENT = (
    _Build(tag="cu126", cuda=12, lowest=(5, 0), highest_major=9),
    _Build(tag="cu130", cuda=13, lowest=(7, 5), highest_major=12),
)
BUILDS = (CURRENT, OLDER)
"""Preferred first. 13.2 covers the same cards and drivers as 13.0, and is an experiment of its makers."""


class GpuFailure(Enum):
    """How a product on a GPU ended that did not come out."""

    NO_KERNELS = "this PyTorch has no kernels for it"
    MEMORY = "its memory is full"
    BUSY = "another program has it for itself"
    WRONG = "a matrix product on it came out wrong"
    OTHER = "a matrix product on it failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """An NVIDIA card that the driver, or the bus, tells of."""

    name: str
    capability: Capability | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A GPU that torch sees, and what came of a product on it. Its place in `GpuFacts.trials` is its N of `cuda:N`."""

    name: str
    capability: Capability
    failure: GpuFailure | None = None
    detail: str = ""
    """The failure in the library's words: for reports of faults, not for the volunteer."""
    bf16: bool = False
    """Whether bf16 products came out as well, in hardware that has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """What was found out about this machine's GPUs."""

    torch_version: str = "2.13.0+cpu"
    torch_cuda: str | None = None
    """The CUDA release that torch was built with; None: with none."""
    torch_hip: str | None = None
    """The ROCm release likewise."""
    trials: tuple[Trial, ...] = ()
    cards: tuple[Card, ...] = ()
    driver: str | None = None
    """NVIDIA's driver; None: none answers."""
    driver_restart: bool = False
    """The driver on disk is another one than the kernel runs: it was updated since the machine started."""
    hidden: bool = False
    """CUDA_VISIBLE_DEVICES is set, and may hide GPUs."""
    others: tuple[str, ...] = ()
    """Makers of other GPUs here: `AMD`, `Intel`, `Apple`."""
    arm: bool = False
    pip: str = "python -m pip"
    """How this installation's own pip is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuChoice:
    """The GPU to use, and what to tell about those that are not used."""

    index: int | None
    notice: str = ""


def choose_gpu(facts: GpuFacts, device: str | None) -> GpuChoice:
    """The GPU for `device` (`cuda`, `cuda:N`; None: whichever is best). ConfigError where what was asked for is not."""
    usable = [index for index, trial in enumerate(facts.trials) if trial.failure is None]
    problem = problem_of(facts)
    if device is None:
        if usable or not problem:
            return GpuChoice(index=usable[0] if usable else None, notice=problem)
        return GpuChoice(index=None, notice=f"the GPU is NOT used, training goes on the CPU: {problem}")
    _, _, number = device.partition(":")
    if not number and usable:
        return GpuChoice(index=usable[0], notice=problem)
    index = int(number or 0)
    if facts.trials and index >= len(facts.trials):
        there = ", ".join(f"cuda:{at} ({trial.name})" for at, trial in enumerate(facts.trials))
        raise ConfigError(f"device {device}: this machine has {there}")
    if index in usable:
        return GpuChoice(index=index)
    if facts.trials and number:
        raise ConfigError(f"device {device}: {_trial_problem(facts, index)}")
    raise ConfigError(f"device {device}: {problem or 'no NVIDIA GPU is found on this machine; use --device cpu'}")


def choose_second(facts: GpuFacts, first: int, device: str) -> int:
    """The card beside `first` for `device`, `cuda:M`; ConfigError where it cannot be, or is of another kind.

    Products are taken on both: a lease that two kinds of card compute is nobody's to compute again."""
    second = choose_gpu(facts, device).index
    assert second is not None  # asked for by its number
    if second == first:
        raise ConfigError(f"device: {device} cannot be its own second card")
    one, other = facts.trials[first], facts.trials[second]
    if (one.name, one.capability) != (other.name, other.capability):
        raise ConfigError(f"device: two cards must be alike, got {one.name} and {other.name}")
    return second


def problem_of(facts: GpuFacts) -> str:
    """Why a GPU that is here cannot be used, and what mends it; empty where there is nothing to tell."""
    if facts.trials:
        failed = [_trial_problem(facts, at) for at, trial in enumerate(facts.trials) if trial.failure is not None]
        return " ".join(failed)
    if facts.cards or facts.driver:
        return _unseen_problem(facts)
    if facts.others:
        return _others_problem(facts.others)
    return ""


def _trial_problem(facts: GpuFacts, index: int) -> str:
    trial = facts.trials[index]
    assert trial.failure is not None
    named = f"cuda:{index} ({trial.name}"
    if facts.torch_hip is not None:
        return f"{named}) cannot be used: {trial.failure.value}. AMD GPUs are used where they work; none is tested."
    named += f", compute capability {_dotted(trial.capability)})"
    match trial.failure:
        case GpuFailure.NO_KERNELS:
            built = f"PyTorch {facts.torch_version} has no kernels for it"
            return f"{named} cannot be used: {built}. {_remedy(facts, trial.capability)}"
        case GpuFailure.MEMORY | GpuFailure.BUSY:
            return f"{named} cannot be used: {trial.failure.value}. Close what uses it (nvidia-smi shows that)."
    return f"{named} cannot be used: {trial.failure.value}. Update its driver, restart, and look with nvidia-smi."


def _unseen_problem(facts: GpuFacts) -> str:
    """NVIDIA's card or driver is here, and torch sees nothing."""
    named = ", ".join(dict.fromkeys(card.name for card in facts.cards)) or "an NVIDIA card"
    capability = max((card.capability for card in facts.cards if card.capability), default=None)
    remedy = _remedy(facts, capability)
    if facts.driver_restart:
        return f"{named} is here, but its driver was updated while this machine was running: restart it."
    if facts.driver is None:
        return (
            f"{named} is here, but no driver of NVIDIA answers. Install NVIDIA's driver (in a container: start it with"
            f" --gpus all), then look again with barnraise worker probe. {remedy}"
        )
    if facts.torch_cuda is None:
        built = "for AMD's ROCm" if facts.torch_hip else "without CUDA"
        return f"{named} is here, but PyTorch {facts.torch_version} is built {built}. {remedy}"
    if (needed := DRIVER_OF_CUDA.get(_major(facts.torch_cuda))) is not None and _major(facts.driver) < needed:
        built = f"PyTorch {facts.torch_version} with CUDA {facts.torch_cuda} needs {needed} or newer"
        return f"{named} is here with driver {facts.driver}, but {built}. {remedy}"
    if facts.hidden:
        return f"{named} is here, but CUDA_VISIBLE_DEVICES hides it: unset that to use it."
    return (
        f"{named} is here with driver {facts.driver}, but PyTorch {facts.torch_version} cannot open it. Restart the"
        " machine, and see that nvidia-smi shows the card (in a container: start it with --gpus all)."
    )


def _remedy(facts: GpuFacts, capability: Capability | None) -> str:
    """What to install for a card of `capability` (None: not known) under this driver."""
    fitting = [build for build in BUILDS if capability is None or _covers(build, capability, arm=facts.arm)]
    if not fitting:
        assert capability is not None
        release = facts.torch_version.partition("+")[0]
        return f"No build of PyTorch {release} has kernels for compute capability {_dotted(capability)}: use the CPU."
    if facts.driver is None:
        return f"Then, for PyTorch: {_install_line(facts, fitting[0])}"
    driver = _major(facts.driver)
    runs = next((build for build in fitting if driver >= DRIVER_OF_CUDA[build.cuda]), None)
    if runs is not None:
        return f"This installs what it needs: {_install_line(facts, runs)}"
    wanted = fitting[0]
    installed = facts.torch_cuda is not None and _major(facts.torch_cuda) == wanted.cuda
    then = "" if installed else f", then: {_install_line(facts, wanted)}"
    return f"Update NVIDIA's driver ({facts.driver}) to {DRIVER_OF_CUDA[wanted.cuda]} or newer{then}"


def _covers(build: _Build, capability: Capability, *, arm: bool) -> bool:
    lowest = build.lowest_arm if arm else build.lowest
    return capability >= lowest and capability[0] <= build.highest_major


def _install_line(facts: GpuFacts, build: _Build) -> str:
    # With the build's own tag: to pip, the torch==2.13.0 that is installed already would be good enough.
    release = facts.torch_version.partition("+")[0]
    return (
        f'{facts.pip} install "torch=={release}+{build.tag}" --index-url https://download.pytorch.org/whl/{build.tag}'
    )


def _others_problem(others: Sequence[str]) -> str:
    """What is said of GPUs that are not NVIDIA's."""
    words = {
        "AMD": "AMD GPUs are used only with a ROCm build of PyTorch (Linux; not tested)",
        "Intel": "Intel GPUs are not supported",
        "Apple": "Apple GPUs are not supported",
    }
    return "; ".join(words[maker] for maker in others) + "."


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


def _major(version: str) -> int:
    digits = version.partition(".")[0]
    return int(digits) if digits.isdecimal() else 0
