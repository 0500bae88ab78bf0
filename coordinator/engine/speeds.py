"""How fast each worker is, what a lease costs it besides training, and when the median worker ends a whole lease.

Decides from journalled facts alone: a worker's own reports where there are any, its probe in proportion to others'
probes and measures otherwise. Holds always: what is kept is what looking at all workers anew would give; a probe that
is not a positive, finite number counts as missing. The median is of ends, not of speeds: half of those present do the
recipe's steps whatever their uplinks are.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable
from statistics import median

from coordinator.engine.rows import WorkerRecord
from protocol.ids import WorkerId

_LEAST_STEP_S = 1e-9
"""No machine is faster; a report that says so (or underflows to nothing) must not become a divisor of 0."""


def step_s(record: WorkerRecord) -> float | None:
    """Seconds an inner step takes this worker; None where it has not submitted yet."""
    if not record.reports:
        return None
    return max(_LEAST_STEP_S, median(report.train_s / report.steps for report in record.reports))


def overhead_s(record: WorkerRecord) -> float:
    """Seconds from grant to commit that are not training: fetching, mostly."""
    return median(report.wall_s - report.train_s for report in record.reports) if record.reports else 0.0


def upload_s(record: WorkerRecord) -> float:
    """Seconds from commit to the last byte of a usual submission; 0 while none came in one go."""
    if not record.uploads:
        return 0.0
    a_byte_s = median(report.upload_s / report.payload_bytes for report in record.uploads)
    return a_byte_s * median(report.payload_bytes for report in record.uploads)


class Speeds:
    """Measured and probed speeds of all workers, sorted."""

    __slots__ = (
        "_both",
        "_fixed",
        "_measured",
        "_present",
        "_present_ends",
        "_present_fixed",
        "_present_measured",
        "_present_probes",
        "_probes",
        "_reference",
        "_reference_end",
        "_steps",
    )

    def __init__(self, steps: int) -> None:
        self._steps = steps
        """The recipe's, in the present round."""
        self._measured: dict[WorkerId, float] = {}
        self._fixed: dict[WorkerId, float] = {}
        """What a lease costs besides training, for those who have been measured."""
        self._probes: dict[WorkerId, float] = {}
        self._present: set[WorkerId] = set()
        """Those of the measured who are here."""
        # sorted, so that medians are looked up and not computed
        self._both: list[float] = []
        self._present_measured: list[float] = []
        self._present_fixed: list[float] = []
        self._present_ends: list[float] = []
        self._present_probes: list[float] = []
        self._reference: float | _Unknown | None = _UNKNOWN
        self._reference_end: float | _Unknown | None = _UNKNOWN

    def turn_to(self, steps: int) -> None:
        """The recipe's steps in the round that opens."""
        if steps != self._steps:
            self._steps, self._reference_end = steps, _UNKNOWN
            self._present_ends = sorted(map(self._end_s, self._present))

    def put(self, old: WorkerRecord | None, new: WorkerRecord) -> None:
        """`new` is the worker's record in the place of `old`."""
        same = (
            old is not None
            and old.reports is new.reports
            and old.uploads is new.uploads
            and old.tokens_per_s == new.tokens_per_s
        )
        if same and old is not None and old.present == new.present:
            return
        self._reference = self._reference_end = _UNKNOWN
        if old is not None:
            self._take_out(old)
        worker = new.worker
        if not same:
            self._measured.pop(worker, None)
            measured = step_s(new)
            if measured is not None:
                self._measured[worker] = measured
                self._fixed[worker] = overhead_s(new) + upload_s(new)
            self._probes.pop(worker, None)
            if math.isfinite(new.tokens_per_s) and new.tokens_per_s > 0:
                self._probes[worker] = new.tokens_per_s
        self._put_in(new)

    @property
    def any_measured(self) -> bool:
        """Whether anybody has submitted yet."""
        return bool(self._measured)

    def step_s(self, worker: WorkerId) -> float | None:
        """Seconds an inner step takes `worker`; in proportion only, while nobody has submitted."""
        own = self._measured.get(worker)
        if own is not None:
            return own
        probe = self._probes.get(worker)
        return None if probe is None or not self._probes_count else self._tokens_a_step / probe

    def fixed_s(self, worker: WorkerId) -> float:
        """Seconds of `worker`'s lease, grant to last byte, that are not training; the median where not measured."""
        return self._fixed.get(worker, self._usual_fixed)

    @property
    def least_fixed_s(self) -> float:
        """No present worker needs less besides training."""
        return self._present_fixed[0] if self._present_fixed else 0.0

    @property
    def reference_end_s(self) -> float | None:
        """When the median of the present workers ends a lease of the recipe's steps, in the terms of `step_s`."""
        if isinstance(self._reference_end, _Unknown):
            steps, fixed = self._steps, self._usual_fixed
            self._reference_end = self._median(self._present_ends, lambda step: steps * step + fixed)
        return self._reference_end

    @property
    def reference_step_s(self) -> float | None:
        """Median over present workers, in the terms of `step_s`."""
        if isinstance(self._reference, _Unknown):
            self._reference = self._median(self._present_measured, lambda step: step)
        return self._reference

    @property
    def least_step_s(self) -> float | None:
        """No present worker is faster than this."""
        found = self._present_measured[:1]
        if self._present_probes and self._probes_count:
            found = [*found, self._tokens_a_step / self._present_probes[-1]]
        return min(found, default=None)

    @property
    def _probes_count(self) -> bool:
        # a probe is read against workers with both; without any measure, probes give ratios among themselves
        return bool(self._both) or not self._measured

    @property
    def _tokens_a_step(self) -> float:
        return _median_of(len(self._both), self._both.__getitem__) if self._both else 1.0

    @property
    def _usual_fixed(self) -> float:
        fixed = self._present_fixed
        return _median_of(len(fixed), fixed.__getitem__) if fixed else 0.0

    def _end_s(self, worker: WorkerId) -> float:
        return self._steps * self._measured[worker] + self._fixed[worker]

    def _median(self, measured: list[float], of_step: Callable[[float], float]) -> float | None:
        """Median of the ascending `measured` and, for those who were probed only, of `of_step` of their step's time."""
        probes = self._present_probes if self._probes_count else []
        tokens, last = self._tokens_a_step, len(probes) - 1
        total = len(measured) + len(probes)
        if not total:
            return None

        def probed(place: int) -> float:
            return of_step(tokens / probes[last - place])

        return _median_of(total, lambda rank: _smallest(measured, probes, probed, rank))

    def _take_out(self, record: WorkerRecord) -> None:
        for values, value in self._places(record):
            del values[bisect_left(values, value)]
        self._present.discard(record.worker)

    def _put_in(self, record: WorkerRecord) -> None:
        for values, value in self._places(record):
            insort(values, value)
        if record.present and record.worker in self._measured:
            self._present.add(record.worker)

    def _places(self, record: WorkerRecord) -> list[tuple[list[float], float]]:
        measured, probe = self._measured.get(record.worker), self._probes.get(record.worker)
        places: list[tuple[list[float], float]] = []
        if measured is not None and probe is not None:
            places.append((self._both, measured * probe))
        if record.present and measured is not None:
            places.append((self._present_measured, measured))
            places.append((self._present_fixed, self._fixed[record.worker]))
            places.append((self._present_ends, self._end_s(record.worker)))
        elif record.present and probe is not None:
            places.append((self._present_probes, probe))
        return places


class _Unknown:
    """The median has to be looked up anew."""


_UNKNOWN = _Unknown()


def _median_of(count: int, ranked: Callable[[int], float]) -> float:
    """Median of `count` values of which `ranked(i)` is the i-th smallest."""
    if count % 2:
        return ranked(count // 2)
    return (ranked(count // 2 - 1) + ranked(count // 2)) / 2


def _smallest(first: list[float], other: list[float], other_at: Callable[[int], float], rank: int) -> float:
    """The value of this rank in `first` and the ascending values `other_at(0..len(other) - 1)` together."""
    low, high = max(0, rank + 1 - len(other)), min(rank + 1, len(first))
    while low < high:  # how many of the rank + 1 smallest come from `first`
        taken = (low + high) // 2
        if first[taken] < other_at(rank - taken):
            low = taken + 1
        else:
            high = taken
    from_first = [first[low - 1]] if low else []
    from_other = [other_at(rank - low)] if rank - low >= 0 else []
    return max(from_first + from_other)
