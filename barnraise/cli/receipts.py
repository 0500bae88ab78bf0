"""A volunteer's receipts: what this machine has earned, and whether receipts hold, whoever shows them.

Decides how it is told; `protocol/receipts.py` says what holds. Reads the home folder, and the files that it is given.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barnraise.cli.options import Json, WhichRun, WorkerHome
from barnraise.cli.output import print_json, print_pairs, print_table, say_error, say_note

if TYPE_CHECKING:
    from protocol.receipt_files import CheckedReceipts
    from protocol.receipts import Earned

_COUNTS = ("tokens", "leases", "rounds", "revoked")
app = typer.Typer(no_args_is_help=True, help="What a run says that somebody has done for it.")


def receipts(
    run: WhichRun = "",
    home: WorkerHome = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write them to this file, to hand on; of each further GPU to one beside."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What this machine has earned in a run, with its badges, from the receipts that it keeps. Asks nobody."""
    from protocol.errors import ConfigError
    from protocol.receipt_files import checked_receipts
    from protocol.receipts import earned
    from worker.belongings import kept_receipts
    from worker.energy import noted_energy
    from worker.siblings import places_of

    kept = {place: content for place in places_of(run, home) if (content := kept_receipts(place))}
    if not kept:
        raise ConfigError("there are no receipts yet: they come with the first work that is accepted")
    found = {place: checked_receipts(content) for place, content in kept.items()}
    revoked = {one for each in found.values() if each.revocations for one in each.revocations.lease_ids}
    sum_ = earned([one for each in found.values() for one in each.receipts], revoked)
    if out is not None:
        _write(out, {place.gpu: content for place, content in kept.items()})
    rows = []
    for place, each in found.items():
        of_gpu = dataclasses.asdict(earned(each.receipts, revoked))
        rows.append({"gpu": place.gpu, **of_gpu, "energy": noted_energy(place.folder).kwh})
    run_id = next(iter(found.values())).run_id
    energy = {name: round(sum(row["energy"][name] for row in rows), 6) for name in rows[0]["energy"]}
    if as_json:
        print_json({"run": run_id, **dataclasses.asdict(sum_), "energy": energy, "gpus": rows})
    else:
        _show(run_id, sum_, energy, rows)


def _show(run_id: str, sum_: Earned, energy: dict[str, float], rows: list[dict[str, Any]]) -> None:
    from worker.energy import energy_words

    if len(rows) > 1:
        columns = ("gpu", "validated_tokens", "leases", "rounds", "taken_back")
        print_table(
            columns,
            [
                dict(zip(columns, (row["gpu"] or "first", *(row[name] for name in _COUNTS)), strict=True))
                for row in rows
            ],
        )
        print()
    print_pairs(
        (
            ("run", run_id),
            ("validated tokens", f"{sum_.tokens:,}"),
            ("leases", sum_.leases),
            ("rounds", sum_.rounds),
            ("taken back", sum_.revoked),
            ("badges", ", ".join(sum_.badges) or "none yet"),
            ("energy", f"{energy_words(**energy)}; this machine's own figure, unsigned"),
        )
    )


def _write(out: Path, kept: dict[str, bytes]) -> None:
    """A file for each worker, since what was taken back is signed for each; the first under the name that was given."""
    from protocol.private_files import write_private

    written: list[str] = []
    for gpu, content in kept.items():
        path = out.with_name(f"{out.stem}-{gpu.replace(':', '-')}{out.suffix}") if written else out
        write_private(path, content)
        written.append(str(path))
    if len(written) > 1:
        say_note(f"a file for each GPU, to be handed on together: {', '.join(written)}")


@app.command()
def verify(
    files: Annotated[list[Path], typer.Argument(help="Files of receipts; what several say is added up, by run.")],
    authority: Annotated[
        str,
        typer.Option(metavar="FINGERPRINT", help="As in the run's join link, or its first 12 characters: no other's."),
    ] = "",
    revocations: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A run's signed list of what was taken back; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Whether receipts hold, without asking anybody. Exit code 1: something in the files does not."""
    from protocol.receipt_checks import checked_together

    report = checked_together([_read(one) for one in files], [_read(one) for one in revocations or []], authority)
    if as_json:
        print_json(dataclasses.asdict(report))
        return 0 if report.holds else 1
    for one in report.runs:
        print_pairs(
            (
                ("run", one.run_id),
                ("signed under", one.fingerprint),
                ("keys", len(one.worker_keys)),
                ("validated tokens", f"{one.earned.tokens:,}"),
                ("leases", one.earned.leases),
                ("rounds", one.earned.rounds),
                ("taken back", one.earned.revoked),
                ("badges", ", ".join(one.earned.badges) or "none yet"),
            )
        )
        if not authority:
            print("compare `signed under` with the run's join link: anybody can begin a run and sign for it")
    for wrong in report.wrong:
        say_error(wrong)
    return 0 if report.holds else 1


def _read(path: Path) -> tuple[str, CheckedReceipts | str]:
    from protocol.errors import BarnraiseError, ConfigError
    from protocol.receipt_files import MAX_FILE_BYTES, checked_receipts

    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return str(path), checked_receipts(content)
    except BarnraiseError as error:
        return str(path), str(error)
