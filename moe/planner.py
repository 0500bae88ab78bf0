"""How many expert columns fit into a volunteer's memory, on which rungs of the memory ladder, and why.

Decides the one search that `barnraise plan`, a worker and a coordinator share: of all ways in which a machine may train
a model (`moe.rungs.of_machine`) the one that holds most columns, and of those the quickest; for a lease of so many
columns, the quickest that fits. A column is worth more than a third of the speed. Touches nothing.

To add a rung: (1) in `moe/rungs.py` an entry of `RUNGS` (its name, whose choice, which line it makes smaller, its
values, what it costs) and, if it is the machine's, a field of `Schedule` with the quickest value as default, if it is
the run's, a field of `protocol.recipe.Recipe`; (2) what it takes, where that part is counted: a tensor's bytes in
`moe/weighing.py`, a part of the whole in `moe/burden.py` (`_kept_lines`, `_passing_line`, `_host_lines`), what passes
in `moe/passing.py`; (3) the worker does what the schedule or the recipe says (`worker/train/training.py`); (4) a case
of `tests/worker/planned_memory.py`, which holds the plan against a process. Search, table and sentences follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from moe.burden import Burden, Memory, PlanLine, held_bytes, memory_of
from moe.layout import FP32_BYTES, Layout
from moe.rungs import Rung, Schedule, lower_recipes, of_machine, schedules, told
from moe.stand_ins import HOST
from protocol.recipe import Recipe
from protocol.residency import ABSENT
from protocol.text import human_bytes

__all__ = ["Burden", "Memory", "Plan", "PlanLine", "held_bytes", "plan", "planned", "schedule_for"]

PLANNED_SEQUENCES: Final = (4, 1)
"""Of a micro-batch: columns are worth more than a larger one, but one sequence alone is slow."""
COLUMN_PARTS: Final = (2, 4, 8)
"""That are tried where not even one whole column fits."""
ANY_HOST: Final = 1 << 62
"""Where nobody knows how much memory there is beside a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The largest shard that fits; with `fits` false, the smallest one and how much is missing."""

    columns: int
    fits: bool
    offered: Memory
    needed: Memory
    schedule: Schedule
    lines: tuple[PlanLine, ...]
    reason: str

    @property
    def memory_bytes(self) -> int:
        """What was offered of the device's."""
        return self.offered.device

    @property
    def needed_bytes(self) -> int:
        """Of the device's."""
        return self.needed.device

    @property
    def recomputed(self) -> bool:
        """Whether activations are computed again instead of kept."""
        return self.schedule.recomputed

    @property
    def mapped_bytes(self) -> int:
        """Of the block cache."""
        return sum(line.memory_bytes for line in self.lines if line.where == "files")

    def bytes_of(self, part: str) -> int:
        """Of one part."""
        return sum(line.memory_bytes for line in self.lines if line.part == part)


def plan(
    layout: Layout,
    memory_bytes: int,
    *,
    batch_sequences: int,
    sequence_length: int,
    compute_bytes: int = FP32_BYTES,
    recipe: Recipe | None = None,
    on_gpu: bool | None = None,
) -> Plan:
    """`planned` for `batch_sequences` at once and as much host memory as that takes; a GPU multiplies in bf16 where
    `on_gpu` does not say otherwise.
    """
    load = Burden(
        layout=layout,
        recipe=recipe or Recipe(),
        sequence_length=sequence_length,
        compute_bytes=compute_bytes,
        on_gpu=compute_bytes != FP32_BYTES if on_gpu is None else on_gpu,
    )
    return planned(load, Memory(memory_bytes, ANY_HOST), (batch_sequences,))


def planned(load: Burden, memory: Memory, sequences: tuple[int, ...] = PLANNED_SEQUENCES) -> Plan:
    """The largest number of columns whose training fits into `memory`, `sequences` of a micro-batch being tried in
    turn until any does.
    """
    found = None
    for count in sequences:
        found = _at(load, memory, count)
        if found.fits:
            return found
    assert found is not None
    return replace(found, reason=f"{found.reason}. {what_would_fit(load, memory, found)}")


def schedule_for(load: Burden, columns: int, memory: Memory, batch: int) -> Schedule:
    """The quickest way to train so many columns, `batch` sequences a step; the smallest where none fits."""
    load = replace(load, batch_sequences=batch)
    ways = list(schedules(load.layout, batch, on_gpu=load.on_gpu))
    fitting = (one for one in ways if memory.holds(load.needed(columns, one)))
    return next(fitting, None) or min(ways, key=lambda one: load.needed(columns, one).device)


def _at(load: Burden, memory: Memory, sequences: int) -> Plan:
    layout, found = load.layout, of_machine(load.layout, on_gpu=load.on_gpu)
    ways = [Schedule(sequences, **values) for values, _ in found]

    def most(way: Schedule) -> int:
        return _most(lambda count: memory.holds(load.needed(count, way)), layout.min_columns, layout.columns)

    counts = [most(way) for way in ways]
    columns = max(*counts, layout.min_columns)
    if max(counts):
        way = ways[counts.index(max(counts))]
    else:
        way = min(ways, key=lambda one: load.needed(columns, one).device)
    lines = load.lines(columns, way)
    needed = memory_of(lines)
    more = min((load.needed(min(columns + 1, layout.columns), one) for one in ways), key=lambda one: one.device)
    return Plan(
        columns=columns,
        fits=memory.holds(needed),
        offered=memory,
        needed=needed,
        schedule=way,
        lines=lines,
        reason=_reason(load, columns, needed, memory, more, way),
    )


def _most(fits: Callable[[int], bool], fewest: int, most: int) -> int:
    """The largest count that fits, 0 where none does: what fits one column more fits one fewer."""
    if not fits(fewest):
        return 0
    low, high = fewest, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _reason(load: Burden, columns: int, needed: Memory, offered: Memory, more: Memory, way: Schedule) -> str:
    layout = load.layout
    if not offered.holds(needed):
        fewest = layout.min_columns
        why = ", the top-k of a shard whose other columns are absent" if layout.residency == ABSENT else ""
        return f"not even {fewest} of {layout.columns} columns fit{why}: {_short(needed, offered)}"
    how = f" at {way.micro_batch * load.sequence_length} tokens a micro-batch"
    how += "".join(f", {words}" for words in told(way))
    if load.second is not None and way.place == HOST:
        how += ", the first layers of other columns on the second card"
    room = f"{human_bytes(needed.device)} of {human_bytes(offered.device)}{how}"
    if columns == layout.columns:
        return f"all {columns} columns fit: {room}"
    host = "" if more.host <= offered.host else f", and {human_bytes(more.host)} of the host's"
    return f"{columns} of {layout.columns} columns fit: {room}; one more would need {human_bytes(more.device)}{host}"


def _short(needed: Memory, offered: Memory) -> str:
    pairs = [(needed.device, offered.device, "")]
    if needed.host > offered.host:
        pairs.append((needed.host, offered.host, " of the host's memory"))
    return "; ".join(f"{human_bytes(need)}{of} needed, {human_bytes(offer)} offered" for need, offer, of in pairs)


def what_would_fit(load: Burden, memory: Memory, found: Plan) -> str:
    """A sentence: the rungs that a run would have to allow, or the memory that is missing even then."""
    for rungs, recipe in lower_recipes(load.recipe):
        lower = _at(replace(load, recipe=recipe), memory, 1)
        if lower.fits:
            return f"With {_named(rungs)} {lower.columns} would fit"
    *_, last = (((), load.recipe), *lower_recipes(load.recipe))
    if said := _in_parts(load, memory):
        return f"With {said} would fit"
    least = _at(replace(load, recipe=last[1]), memory, 1)
    largest = max((line for line in least.lines if line.where == "device"), key=lambda line: line.memory_bytes)
    even = f" even with {_named(last[0])}" if last[0] else ""
    return (
        f"It would take {human_bytes(least.needed.device)}{even}, of which {human_bytes(largest.memory_bytes)} "
        f"are {largest.part}"
    )


def _in_parts(load: Burden, memory: Memory) -> str:
    """In how many parts each expert's column would have to be for any to fit; nothing where none does."""
    layout = load.layout
    if layout.residency == ABSENT or len(layout.parts) > 1:
        return ""
    cuts = {count: layout.cut_into(count) for count in COLUMN_PARTS if layout.expert_layers % count == 0}
    *_, lowest = ((), load.recipe), *lower_recipes(load.recipe)
    for rungs, recipe in (((), load.recipe), lowest):
        for count, cut in cuts.items():
            if (found := _at(replace(load, layout=cut, recipe=recipe), memory, 1)).fits:
                beside = f"{_named(rungs)} and " if rungs else ""
                return f"{beside}columns cut into {count} parts (column_parts), {found.columns} of {cut.columns}"
    return ""


def _named(rungs: tuple[Rung, ...]) -> str:
    return " and ".join(str(list(rung.options.values())[-1]) for rung in rungs)
