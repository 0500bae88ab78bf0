"""Having published versions validated: by whom, and what becomes of the word of somebody who is found to have lied.

Decides which validations trusted workers may make in the coordinator's place: all but the first, when nobody is there
yet, and the run's last, after which nobody need stay. Holds always: a figure whose worker was found to have lied stands
nowhere any more, and the present version's is then measured here. Nothing that the engine decides reads a validation:
versions are published by what the coordinator itself measures on a secret draw (trust_region.py), so whoever lies here
moves a figure that people read, and no more. See docs/decisions/0049.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from coordinator.engine import measuring
from coordinator.engine.commands import ValidateVersion
from coordinator.engine.events import VersionValidated
from coordinator.engine.history import Validation, remembered
from coordinator.engine.phases import Phase
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn
from protocol.ids import Version

NOBODY = ""
"""The person whose version it is."""


def validate(turn: Turn) -> None:
    """Have the present version validated, unless it is or is about to be."""
    state, command = turn.state, _command(turn.state)
    known = any(validation.version == state.version for validation in state.validations)
    if known or command.command_id in state.pending:
        return
    config = state.config.delegation
    if config.enabled and not _ends(state) and measuring.measurers(state, NOBODY):
        drawn = measuring.is_checked(turn, state.round.round, command.command_id)
        command = replace(command, delegate=True, check=drawn, tolerance=config.tolerance)
    turn.emit(command)


def measure_all_here(turn: Turn) -> None:
    """The run ends: whoever may still have a version to validate is not waited for."""
    for command in list(turn.state.pending.values()):
        if isinstance(command, ValidateVersion) and command.delegate:
            turn.emit(replace(command, delegate=False))


def is_to_be_confirmed(turn: Turn, command: ValidateVersion, event: VersionValidated) -> bool:
    """Whether it is the word of somebody whose word is worth nothing any more: then it is measured here."""
    if event.measured_by is None:
        return False
    worker = turn.state.workers.get(event.measured_by)
    if worker is not None and measuring.may_measure(worker):
        return False
    turn.emit(replace(command, delegate=False, answers=event.answers))
    return True


def note(state: EngineState, event: VersionValidated) -> None:
    """The held-out loss, with the round that made the version."""
    loss, error = event.val_loss, event.val_loss_se
    validation = Validation(version=event.version, val_loss=loss, val_loss_se=error, measured_by=event.measured_by)
    rows = remembered(state.validations, validation)
    state.validations = tuple(sorted(rows, key=lambda one: one.version))  # an earlier version's may come later
    _put(state, {event.version: (loss, error)})


def strike_out(turn: Turn, people: Collection[str]) -> None:
    """What these people said of versions is worth nothing."""
    state = turn.state
    struck = {
        one.version
        for one in state.validations
        if one.measured_by is not None and state.workers[one.measured_by].person in people
    }
    if not struck:
        return
    state.validations = tuple(one for one in state.validations if one.version not in struck)
    _put(state, dict.fromkeys(struck, (None, None)))
    command = _command(state)
    if state.version in struck and state.phase is not Phase.OVER and command.command_id not in state.pending:
        turn.emit(command)


def _command(state: EngineState) -> ValidateVersion:
    return ValidateVersion(command_id=f"validate:v{state.version}", version=state.version, manifest=state.manifest)


def _ends(state: EngineState) -> bool:
    """Whether no round comes after this one."""
    over = state.stop_reason is not None or state.round.round >= state.config.max_rounds
    return over or state.phase is Phase.FINISHING


def _put(state: EngineState, figures: dict[Version, tuple[float | None, float | None]]) -> None:
    if not any(row.version in figures for row in state.history):
        return
    state.history = tuple(
        replace(row, val_loss=figures[row.version][0], val_loss_se=figures[row.version][1])
        if row.version is not None and row.version in figures
        else row
        for row in state.history
    )
