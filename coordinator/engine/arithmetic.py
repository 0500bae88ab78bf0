"""What an audit is worth whose auditor may round otherwise than its worker did.

Decides whether a difference can be held against a worker: only where both computed in one arithmetic class
(protocol/arithmetic.py) that gives the same bits again and cut their batches the same way, or in fp32, by a recipe that
rounds nothing at random, for so few steps that rounding cannot have grown (`audits.decisive_steps`, measured in
results/replay_noise.json). Anything else beyond the tolerance is undecided: it accuses nobody and vouches for nobody. A
worker is vouched for in the classes and cuts in which its audits passed, until one of these cannot be decided:
elsewhere it is a stranger, whose work is audited and weighs nothing until then (open runs) or less (closed ones). So
nothing is gained by naming a class that nobody has. Pure.
"""

from __future__ import annotations

import math

from coordinator.engine.config import AuditConfig, EngineConfig, most_recipe_steps
from coordinator.engine.rows import AuditResult, LeaseRecord, WorkerRecord
from coordinator.engine.state import EngineState
from protocol.arithmetic import arithmetic_class

_FP32 = "fp32"
_PARTS = frozenset(
    {"audits.budget", "audits.decisive_steps", "inner.inner_steps", "inner.final_inner_steps", "most_steps_share"}
)
"""Settings by which audits may come to say nothing."""
_NAMES = 3
"""Of workers, in a sentence for the operator."""


def is_decisive(config: AuditConfig, record: LeaseRecord, arithmetic: str, micro_batch: int) -> bool:
    """Whether what an auditor found, who computed in `arithmetic`, `micro_batch` sequences at a time, says who lies."""
    is_cut_alike = micro_batch == record.micro_batch and micro_batch > 0
    return (is_cut_alike and _is_same(record.arithmetic, arithmetic)) or _is_short(config, record, arithmetic)


def could_decide(config: AuditConfig, record: LeaseRecord, auditor: WorkerRecord) -> bool:
    """Whether that worker's answer would be decisive, by the class in which it computed last."""
    return _is_same(record.arithmetic, auditor.arithmetic) or _is_short(config, record, auditor.arithmetic)


def is_stranger(config: EngineConfig, worker: WorkerRecord, record: LeaseRecord) -> bool:
    """Whether nobody has vouched for the worker as it computed this lease."""
    if config.audits.budget <= 0.0 or worker.trusted:
        return False
    if not record.computed_as:
        return True
    if not worker.vouched_in:
        return worker.audits_passed == 0 or worker.undecided_in_row > 0  # an older release did not ask how
    return record.computed_as not in worker.vouched_in


def told_classes(record: LeaseRecord, result: AuditResult) -> str:
    """For the operator: in which classes a lease and its audit were computed, and why that says nothing, if so."""
    steps = record.lease.inner_steps
    if result.decisive and result.arithmetic == record.arithmetic:
        return f"both in {_class(record.arithmetic)}"
    if result.decisive:
        return f"worker: {_class(record.arithmetic)}; auditor: {_class(result.arithmetic)}"
    if result.arithmetic and result.arithmetic == record.arithmetic:
        why = "cut into other batches, or in a class that need not repeat itself"
        return f"could not decide: computed {why} ({result.arithmetic}), {steps} steps"
    return (
        f"could not decide: computed in another arithmetic class, {steps} steps "
        f"(worker: {_class(record.arithmetic)}; auditor: {_class(result.arithmetic)})"
    )


def told_undecided_workers(state: EngineState) -> tuple[str, ...]:
    """A sentence about workers whose latest audits said nothing, for the status; none where there are none."""
    found = [one for one in state.workers.values() if one.undecided_in_row and one.ban is None]
    if not found:
        return ()
    names = ", ".join(f"{state.called(one.worker)} ({one.undecided_in_row})" for one in found[:_NAMES])
    more = f" and {len(found) - _NAMES} more" if len(found) > _NAMES else ""
    kept = 0.0 if state.config.open_run else state.config.audits.unpaid_weight
    counts = "nowhere" if kept == 0.0 else f"at {kept:g} of its weight"
    return (
        f"the latest audits of {names}{more} could not decide: computed in another arithmetic class, in over "
        f"{state.config.audits.decisive_steps} steps or not in fp32; until one can, what these send counts {counts}. "
        "Invite a founder with the same kind of machine (--trusted), or make leases shorter",
    )


def caution(config: EngineConfig) -> str | None:
    """What an operator should know whose audits cannot be decided across kinds of machines; None where they can."""
    most = math.ceil(most_recipe_steps(config) * config.most_steps_share)
    is_long = most > config.audits.decisive_steps
    if config.audits.budget <= 0.0 or not (is_long or config.inner.rounds_at_random):
        return None
    why = (
        f"leases of up to {most} steps are longer than audits.decisive_steps ({config.audits.decisive_steps})"
        if is_long
        else "weights or moments are rounded at random (inner.masters, inner.moments)"
    )
    return (
        f"{why}: only "
        "an auditor with the worker's own kind of processor, torch and threads can tell a liar there; whoever has none "
        f"{'weighs nothing' if config.open_run else 'stays capped'} (results/replay_noise.json)"
    )


def caution_after(config: EngineConfig, key: str) -> str:
    """The same where the setting `key`, which was just changed, has a part in it; else empty."""
    return (caution(config) or "") if key in _PARTS else ""


def caution_of_workers(state: EngineState) -> str | None:
    """The same of workers that multiply in other than fp32, as they say themselves; None where there are none."""
    if state.config.audits.budget <= 0.0:
        return None
    kinds = [arithmetic_class(one.arithmetic) for one in state.workers.values() if one.ban is None]
    others = [kind.dtype for kind in kinds if kind is not None and kind.dtype != _FP32]
    if not others:
        return None
    return (
        f"{len(others)} workers compute in {', '.join(sorted(set(others)))}: only an auditor of the very same kind can "
        "tell a liar among them"
    )


def _is_same(one: str, other: str) -> bool:
    kind = arithmetic_class(one)
    return kind is not None and kind.is_repeatable and kind == arithmetic_class(other)


def _is_short(config: AuditConfig, record: LeaseRecord, arithmetic: str) -> bool:
    kinds = arithmetic_class(record.arithmetic), arithmetic_class(arithmetic)
    plain = all(kind is not None and kind.dtype == _FP32 for kind in kinds)
    recipe = record.lease.recipe
    return plain and not recipe.rounds_at_random and record.lease.inner_steps <= config.decisive_steps


def _class(text: str) -> str:
    return text or "not said"
