"""`barnraise worker service`: a worker that is there whenever its machine is, by its owner's rules.

Decides how it is told; `worker/service/` does it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from barnraise.cli.options import Json, WhichRun, WorkerHome
from barnraise.cli.output import print_json, print_pairs

if TYPE_CHECKING:
    from worker.service.control import ServiceState

app = typer.Typer(no_args_is_help=True, help="Start the worker with your session, in the background.")


@app.command()
def install(
    run: WhichRun = "",
    home: WorkerHome = None,
    gpus: Annotated[str, typer.Option(help="A worker for each of these GPUs, as 0,1 or all.")] = "",
    linger: Annotated[
        bool, typer.Option("--linger", help="Linux: also while you are not logged in, from the machine's start on.")
    ] = False,
    show: Annotated[bool, typer.Option("--print", help="Show what would be written, and do nothing.")] = False,
    as_json: Json = False,
) -> int:
    """Have the worker started now and at each login, and again after a fault. Join a run once before."""
    from protocol.errors import ConfigError
    from worker.rejoin import home_root, known_runs
    from worker.service.control import manager_here, terms_of

    manager, terms = manager_here(), terms_of(home, run, gpus)
    if show:
        print(manager.text(terms), end="")
        return 0
    if not known_runs(home_root(home)):
        raise ConfigError("this machine is enrolled in no run yet: `barnraise worker join LINK` once, then this")
    return _tell(manager.install(terms, linger=linger), as_json, wanted=True)


@app.command()
def remove(as_json: Json = False) -> int:
    """Stop the service and forget it. Keys, receipts and unsent work stay."""
    from worker.service.control import manager_here

    return _tell(manager_here().remove(), as_json, wanted=False)


@app.command()
def status(as_json: Json = False) -> int:
    """How the service stands. Exit code 1: it is not installed, or not running."""
    from worker.service.control import manager_here

    return _tell(manager_here().status(), as_json, wanted=True)


def _tell(state: ServiceState, as_json: bool, *, wanted: bool) -> int:
    if as_json:
        print_json(dataclasses.asdict(state))
    else:
        at = {True: "from the machine's start on", False: "from your login on", None: "not known"}[state.at_boot]
        print_pairs(
            (
                ("service", f"{'installed' if state.installed else 'not installed'} ({state.manager})"),
                ("running", "yes" if state.running else "no"),
                ("starts", at if state.installed else "not by itself"),
                ("file", state.file or "kept by the system"),
                ("says", state.words),
            )
        )
    return 0 if (state.installed and state.running) == wanted else 1
