"""From one engine's state to the next one's: what makes a run outlive a release.

Decides which runs of an older engine go on under this one. The same events may lead another engine to another state, so
a journal is never replayed by it; but a *snapshot* is data and can be rewritten. So: a run that its own release stopped
cleanly (a snapshot and nothing after it) goes on if each step to the present version is known here; any other is
refused with what to do. Reads the journal that it is given; whoever opens a run to serve it saves what came of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from coordinator.store.ports import EventStore, Snapshot
from protocol.errors import ConfigError

OldState = dict[str, Any]
Migrations = Mapping[int, Callable[[OldState], OldState]]
"""From an engine version to what turns its snapshot into the next version's."""


def _two_to_three(state: OldState) -> OldState:
    """Times become run time, and sentences become keys with figures."""
    return _keys_for_sentences(_run_time(state))


def _run_time(state: OldState) -> OldState:
    """Times were the wall clock's. Run time goes on from there, so the calendar showed the same until now."""
    return {**state, "calendar": [{"at_s": 0.0, "wall_s": 0.0}]}


def _keys_for_sentences(state: OldState) -> OldState:
    """Reasons are keys with figures. The sentences of before are kept as they were told."""
    for record in state["leases"].values():
        if record["verdict"] is not None:
            record["verdict"]["why"] = _as_told(record["verdict"].pop("reason"))
        record["ended"] = _as_told(record["ended"]) if record["ended"] else None
    for worker in state["workers"].values():
        if worker["quarantine"] is not None:
            worker["quarantine"]["why"] = _as_told(worker["quarantine"].pop("reason"))
    for row in state["history"]:
        row["closed"] = _as_told(row.pop("close_reason"))
    closed, over = state["round"].pop("close_reason"), state.pop("end_reason")
    state["round"]["closed"] = _as_told(closed) if closed else None
    state["ended"] = _as_told(over) if over else None
    return state


def _as_told(sentence: str) -> OldState:
    return {"case": "as_told", "figures": {}, "about": sentence}


def _three_to_four(state: OldState) -> OldState:
    """Commands carry what the executor read from the engine before; a lease's recipe has a name of its own."""
    return _with_nested_recipes(_with_counts_in_commands(state))


_RECIPE_OF_3 = (
    *("optimizer", "learning_rate", "muon_learning_rate", "muon_momentum", "router_lr_scale", "warmup_steps"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_norm"),
)
"""Fields of a lease of version 3 that are its recipe's now. As they were then, whatever a recipe has today."""


def _with_nested_recipes(state: OldState) -> OldState:
    """A lease spelt its recipe out among its own fields: in the table of leases, and in commands that wait."""
    leases = [record["lease"] for record in state["leases"].values()]
    leases += [command["lease"] for command in state["pending"].values() if "lease" in command]
    for lease in leases:
        lease["recipe"] = {name: lease.pop(name) for name in _RECIPE_OF_3}
    return state


def _with_counts_in_commands(state: OldState) -> OldState:
    """Pending outer steps say what each contribution was trained on, and which versions nobody needs any more."""
    for command in state["pending"].values():
        step = command.get("attempt", command)
        if "contributions" in step:
            step["oldest_needed"] = _oldest_version_needed(state)
            for one in step["contributions"]:
                lease = state["leases"][one["lease_id"]]["lease"]
                one["sequences"] = lease["inner_steps"] * lease["batch_sequences"]
    return state


def _oldest_version_needed(state: OldState) -> int:
    """Of all leases that are not forgotten, whatever became of them: too old costs some disk for one round."""
    leases = (record["lease"]["base_version"] for record in state["leases"].values())
    commands = (command["version"] for command in state["pending"].values() if "version" in command)
    return int(min([state["version"], *leases, *commands]))


def _four_to_five(state: OldState) -> OldState:
    """What came with version 5 begins at its defaults, and what is known of workers becomes what it would have been."""
    return _with_norms_at_common_rates(_with_shares_of_refused(state))


def _with_shares_of_refused(state: OldState) -> OldState:
    """Refusals in a row become a share that fades; whoever had none has so many valid submissions as were accepted."""
    for worker in state["workers"].values():
        in_row = worker.pop("rejected_in_row")
        worker["judged_lately"] = worker["refused_lately"] = float(in_row)
        worker["valid_in_row"] = 0 if in_row else worker["accepted"]
    return state


def _with_norms_at_common_rates(state: OldState) -> OldState:
    """Norms were brought to common steps alone, and nobody knew whose the remembered ones were: those begin anew."""
    state["norm_history"] = {}
    inner = state["config"]["inner"]
    for record in state["leases"].values():
        lease = record["lease"]
        by_steps = inner["inner_steps"] / lease["inner_steps"]
        scale = _scale_of_norms(inner, lease["recipe"], lease["inner_steps"]) / by_steps
        record["norms"] = [{**norm, "norm_l2": norm["norm_l2"] * scale} for norm in record["norms"]]
    return state


def _scale_of_norms(inner: OldState, recipe: OldState, steps: int) -> float:
    """As version 5 does, whatever a later one will do: by rates, and by steps at the full one to the power of 3/4."""

    def length(rate: float, steps: int, warmup: int) -> float:
        warm = min(steps, warmup)
        full_steps = steps - warm + warm * (warm + 1) / (2.0 * (warmup + 1))
        return float(rate * full_steps**0.75)

    first = length(inner["learning_rate"], inner["inner_steps"], min(inner["warmup_steps"], inner["inner_steps"]))
    return first / length(recipe["learning_rate"], steps, recipe["warmup_steps"])


def _five_to_six(state: OldState) -> OldState:
    """What came with version 6 begins at its defaults, but for what follows from what was there."""
    return _without_names(_with_codecs_in_leases(state))


def _without_names(state: OldState) -> OldState:
    """Names stood in the journal, which nobody can take them out of; the registry has had them all along."""
    for worker in state["workers"].values():
        worker["name"] = ""
    return state


def _with_codecs_in_leases(state: OldState) -> OldState:
    """The codec was the run's, and no lease named it: in the table of leases, and in commands that wait."""
    codec = json.loads(state.get("fixed_settings", {}).get("codec", '"bf16"'))
    for config in (state["config"], state.get("next_config")):
        if config is not None:
            config["codec"] = codec
    leases = [record["lease"] for record in state["leases"].values()]
    leases += [command[key] for command in state["pending"].values() for key in ("lease", "again") if key in command]
    for lease in leases:
        lease["codec"] = codec
    return state


def _six_to_seven(state: OldState) -> OldState:
    """What came with version 7 begins at its defaults, but for what follows from what was there."""
    return _with_spreads_at_the_recipes_rate(state)


def _with_spreads_at_the_recipes_rate(state: OldState) -> OldState:
    """What people's gains differed by was that of their rounds' rates: the latest lease says which."""
    leases = [record["lease"] for record in state["leases"].values()]
    rates = {lease["round"]: lease["recipe"]["learning_rate"] for lease in leases}
    share = rates[max(rates)] / state["config"]["inner"]["learning_rate"] if rates else 1.0
    state["gain_spread"] = state.get("gain_spread", 0.0) / share if share > 0.0 else 0.0
    return state


def _seven_to_eight(state: OldState) -> OldState:
    """No worker was another's sibling: that begins at its default."""
    return state


def _eight_to_nine(state: OldState) -> OldState:
    """Only what is decided while a round gathers is another."""
    return state


MIGRATIONS: Migrations = {
    2: _two_to_three,
    3: _three_to_four,
    4: _four_to_five,
    5: _five_to_six,
    6: _six_to_seven,
    7: _seven_to_eight,
    8: _eight_to_nine,
}
"""Whoever raises ENGINE_VERSION adds the step from the one before, or the reason why not. 1 to 2: a version 1 was never
released, and its leases named no optimizer, which nothing after it could make up."""


def migrated_snapshot(journal: EventStore, target: int, migrations: Migrations) -> Snapshot:
    """What `journal` holds, as engine version `target` has it, or ConfigError with what to do. Writes nothing."""
    found = journal.engine_version
    steps = range(found, target)
    if found > target or any(version not in migrations for version in steps):
        raise ConfigError(
            f"this run was begun by engine version {found}, this program has {target}: "
            "finish it with the release that began it, or start a new run from its checkpoint"
        )
    snapshot = journal.latest_snapshot()
    if snapshot is None or snapshot.position != journal.last_position:
        raise ConfigError(
            f"this run was not stopped cleanly by its release (engine version {found}, this program has {target}): "
            "start and stop it once with that release, then start it with this one"
        )
    state: OldState = json.loads(snapshot.state)
    for version in steps:
        state = migrations[version](state)
    state["engine_version"] = target
    plain = json.dumps(state, separators=(",", ":"), allow_nan=True)
    return Snapshot(position=snapshot.position, engine_version=target, state=plain)
