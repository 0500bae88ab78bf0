"""A volunteer's receipts: what this machine has earned, and whether receipts hold, whoever shows them.

Decides how it is told; `protocol/receipts.py` says what holds. Reads the home folder, and the files that it is given.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.options import Json, WhichRun, WorkerHome
from barnraise.cli.output import print_json, print_pairs, say_error

if TYPE_CHECKING:
    from protocol.receipt_files import CheckedReceipts

app = typer.Typer(no_args_is_help=True, help="What a run says that somebody has done for it.")


def receipts(
    run: WhichRun = "",
    home: WorkerHome = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write them to this file, to hand on.")] = None,
    as_json: Json = False,
) -> None:
    """What this machine has earned in a run, with its badges, from the receipts that it keeps. Asks nobody."""
    from protocol.private_files import write_private
    from protocol.receipt_files import checked_receipts
    from protocol.receipts import earned
    from worker.belongings import kept_receipts, place_of
    from worker.energy import energy_words, noted_energy

    place = place_of(run, home)
    content, energy = kept_receipts(place), noted_energy(place.folder)
    found = checked_receipts(content)
    sum_ = earned(found.receipts, found.revocations.lease_ids if found.revocations else ())
    if out is not None:
        write_private(out, content)
    if as_json:
        print_json({"run": found.run_id, **dataclasses.asdict(sum_), "energy": energy.kwh})
        return
    print_pairs(
        (
            ("run", found.run_id),
            ("validated tokens", f"{sum_.tokens:,}"),
            ("leases", sum_.leases),
            ("rounds", sum_.rounds),
            ("taken back", sum_.revoked),
            ("badges", ", ".join(sum_.badges) or "none yet"),
            ("energy", f"{energy_words(**energy.kwh)}; this machine's own figure, unsigned"),
        )
    )


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
