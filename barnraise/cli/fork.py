"""Commands by which a run outlives its operator: an archive of it, and a run that goes on from one.

Decides words only; `coordinator/run/archiving.py` and `forking.py` do the rest.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import ProgressLine, documents_told, print_json, say_note


def archive(
    folder: RunArgument,
    out: Annotated[Path, typer.Argument(help="New folder, or an empty one.")],
    as_json: Json = False,
) -> None:
    """Write the present version so that anybody can go on from it (`fork`): weights, momentum, recipe; no secrets."""
    from coordinator.run.archiving import write_archive
    from coordinator.run.folder import RunFolder

    with ProgressLine(quiet=as_json) as tell:
        index = write_archive(RunFolder.open(folder), out, tell)
    named = index.named()
    size = sum(ref.payload_bytes for ref in named.values())
    if as_json:
        told = {"run_id": index.record.run_id, "version": index.record.version, "fingerprint": index.fingerprint}
        print_json({"archive": str(out), **told, "files": len(named), "bytes": size})
        return
    print(
        f"version {index.record.version} of run {index.record.run_id} is in {out}: {size / 2**20:.1f} MiB, no secrets"
    )
    print(f"its run's certificate has the fingerprint {index.fingerprint}")


def fork(
    source: Annotated[Path, typer.Argument(help="An archive: a worker's archive folder, or what `archive` wrote.")],
    folder: Annotated[Path, typer.Argument(help="The new run's folder.")],
    data: Annotated[
        str | None,
        typer.Option(help="The text that the old run trains on, prepared or not; needed unless that was stdlib."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What people see.")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="After so many rounds, the old run's among them, it ends.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    advertise: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST[:PORT]", help="Name or address by which workers reach this machine; repeatable."),
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="Of the old run's certificate, as in its join links: the archive must be of it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Go on with a run whose operator is gone: a new run, with keys of its own, from what somebody archived.

    Nobody is in it who is not invited to it: its join links are new ones.
    """
    from coordinator.run.forking import fork_run

    given = {"name": name, "host": host, "port": port, "advertised_hosts": advertise or None}
    notes: list[str] = []
    with ProgressLine(quiet=as_json) as tell:
        forked = fork_run(
            source,
            folder,
            data=data,
            given={key: value for key, value in given.items() if value is not None},
            rounds=rounds,
            fingerprint=fingerprint,
            note=notes.append,
            progress=documents_told(tell),
            told=tell,
        )
    for sentence in notes:
        say_note(sentence)
    if as_json:
        print_json({"folder": str(folder), **dataclasses.asdict(forked)})
        return
    print(f"run {forked.run_id} is in {folder}, at version {forked.version}, after round {forked.round}")
    print(f"from run    {forked.from_run}, whose certificate has the fingerprint {forked.from_fingerprint}")
    print(f"serve it:   barnraise coordinator run {folder}")
    print(f"invite:     barnraise coordinator invite {folder}")
