"""`/metrics`: a picture of the run in Prometheus's text format.

Decides names, units and labels, by Prometheus's conventions: base units, `_total` for what only grows over the run's
whole life (restarts included), labels with few values (states, kinds of refusal) and never a worker. What a metric
means stands in its help line; docs/page.md says what is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.engine.reasons import REFUSAL_KEYS
from coordinator.page.view import RunView, Tone

_PREFIX = "barnraise_"


def metrics_text(view: RunView, *, watching: int, dropped: int) -> bytes:
    """Every metric of `view`, of this process and of the page itself."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_OfView(view, watching, dropped))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _OfView(Collector):
    def __init__(self, view: RunView, watching: int, dropped: int) -> None:
        self._view, self._watching, self._dropped = view, watching, dropped

    def collect(self) -> Iterator[Metric]:
        view = self._view
        yield from _run(view)
        yield from _round(view)
        yield from _workers(view)
        yield from _work(view)
        yield from _machine(view)
        yield _gauge("page_viewers", "Viewers of the page that are told what changes.", self._watching)
        yield _counter("page_viewers_dropped", "Viewers that did not take what they were sent.", self._dropped)


def _run(view: RunView) -> Iterator[Metric]:
    card = view.card
    info = InfoMetricFamily(f"{_PREFIX}run", "What the run is.")
    info.add_metric([], {"run_id": card.run_id, "model": card.model, "codec": card.codec, "release": card.release})
    yield info
    yield _labelled("run_state", "1 for how the run is, in one word.", "state",
                    {tone.value: float(view.headline.tone is tone) for tone in Tone})  # fmt: skip
    yield _gauge("run_held", "1 while an operator holds the run, paused or draining.", float(view.health.held))
    yield _gauge("run_start_timestamp_seconds", "When the run's first round opened.", card.started_at_s)
    yield _gauge("version", "Latest published version.", card.version)
    yield _gauge("rounds_planned", "Rounds after which the run is over.", card.max_rounds)
    if view.losses:
        yield _gauge(
            "heldout_loss_nats", "Held-out loss a token, of the latest measured version.", view.losses[-1].loss
        )
        yield _gauge("heldout_loss_version", "Which version that is.", view.losses[-1].version)


def _round(view: RunView) -> Iterator[Metric]:
    current = view.open_round
    deadline_s = 0.0 if current.closes_at_s is None else current.closes_at_s
    yield _gauge("round", "Number of the open round.", current.number)
    yield _labelled("round_phase", "1 for the phase of the open round.", "phase",
                    {phase: float(phase == current.phase) for phase in
                     ("gathering", "training", "grace", "aggregating", "finishing", "over")})  # fmt: skip
    yield _gauge("round_open_seconds", "How long the round has been open.", max(0.0, view.at_s - current.opened_at_s))
    yield _gauge(
        "round_deadline_timestamp_seconds",
        "When the round closes at the latest; 0 while nobody holds a lease of it.",
        deadline_s,
    )
    yield _counter("rounds_closed", "Rounds that are over.", view.rounds_closed)
    yield _gauge("rounds_withheld_in_row", "Rounds in a row whose version was withheld.", view.health.withheld_rounds)
    health = [one.health.value for one in view.columns]
    yield _labelled("columns", "Expert columns by how they stand in the open round.", "health",
                    {name: health.count(name) for name in ("whole", "coming", "short", "unheld")})  # fmt: skip


def _workers(view: RunView) -> Iterator[Metric]:
    yield _labelled("workers", "Enrolled workers by what they do.", "state", view.worker_states)
    yield _gauge("workers_connected", "Workers with an open session.", view.connected)


def _work(view: RunView) -> Iterator[Metric]:
    judged, moved = view.judged, view.moved
    yield _counter("leases_granted", "Leases granted.", judged.leases_granted)
    yield _counter("leases_expired", "Leases that nothing came of.", judged.leases_expired)
    yield _counter("leases_returned", "Leases that were handed back.", judged.leases_returned)
    yield _counter("submissions_accepted", "Submissions accepted, less those taken back.", judged.accepted)
    refused = CounterMetricFamily(f"{_PREFIX}submissions_refused", "Submissions refused, by why.", labels=["reason"])
    # from the start, all of them: of a series that begins with the first refusal, Prometheus sees no increase
    for reason, count in (dict.fromkeys(sorted(REFUSAL_KEYS), 0) | judged.refused).items():
        refused.add_metric([reason], count)
    yield refused
    audits = CounterMetricFamily(f"{_PREFIX}audits", "Leases computed again, by what came of it.", labels=["outcome"])
    audits.add_metric(["passed"], judged.audits_passed)
    audits.add_metric(["failed"], judged.audits_failed)
    yield audits
    yield _counter("tokens_counted", "Tokens trained on in work that counted.", view.tokens_counted)
    joules = 3.6e6 * view.energy.kwh
    yield _gauge("energy_estimated_joules", "What training took, at the watts that settings assume.", joules)
    yield _counter("received_bytes", "Bytes from workers, as messages.", moved.received_bytes)
    yield _counter("sent_bytes", "Bytes to workers, as messages.", moved.sent_bytes)
    yield _counter("calls", "Calls of workers and operators.", moved.calls)
    yield _counter("calls_refused", "Of these, the refused.", moved.refused_calls)


def _machine(view: RunView) -> Iterator[Metric]:
    health = view.health
    yield _gauge("journal_stalled", "1 while nothing can be recorded.", float(bool(health.stalled)))
    yield _gauge("pending_commands", "Slow commands that are to be carried out.", health.pending_commands)
    yield _gauge("failing_commands", "Of these, those that failed at least once.", health.failing_commands)
    yield _counter("commands_failed", "Failures of slow commands, those given up included.", health.failed_commands)
    yield _gauge("disk_free_bytes", "Free on the run's disk.", health.disk_free_bytes)
    yield _gauge("disk_size_bytes", "Size of the run's disk.", health.disk_size_bytes)
    yield _gauge(
        "certificate_expiry_timestamp_seconds",
        "When the coordinator's certificate ends.",
        health.certificate_expires_at_s,
    )
    yield _gauge("picture_timestamp_seconds", "When this picture of the run was made.", view.at_s)
    yield _gauge("picture_cost_seconds", "What the last one took of the coordinator's loop.", health.snapshot_cost_s)


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, help_text, value=value)


def _counter(name: str, help_text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, help_text, value=value)


def _labelled(name: str, help_text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(_PREFIX + name, help_text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
