"""`barnraise coordinator operator-key` and `login`: who may order from elsewhere, and on the run's page.

Decides how they are told; `coordinator/` does the rest. A key is made on its operator's own machine, and stays there.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from barnraise.cli.elsewhere import KEY_FILE, At, operator_home, run_meant
from barnraise.cli.options import Json, RunArgument
from barnraise.cli.output import print_json, print_table
from barnraise.cli.passphrases import Descriptor, passphrase
from protocol.errors import ConfigError, MalformedMessage

if TYPE_CHECKING:
    from coordinator.run.folder import RunFolder

app = typer.Typer(no_args_is_help=True, help="Keys with which operators order from other machines (--at).")

Name = Annotated[str, typer.Argument(help="Stands beside everything that is ordered with this key.")]
_COLUMNS = ("name", "role", "added", "public_key")


@app.command()
def new(as_json: Json = False) -> None:
    """Make this machine's operator's key, and print its public half. One that is there already stays as it is."""
    from protocol.identity import PrivateIdentity

    path = operator_home() / KEY_FILE
    made = not path.is_file()
    if made:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        PrivateIdentity.generate().save(path)
    public_key = PrivateIdentity.load(path).public_key.hex()
    if as_json:
        print_json({"public_key": public_key, "file": str(path), "made": made})
        return
    print(public_key)
    print(
        f"{'made' if made else 'it was there already'}: {path}; where the run is, "
        f"`barnraise coordinator operator-key add RUN NAME {public_key}` lets it in",
        file=sys.stderr,
    )


@app.command()
def add(
    folder: RunArgument,
    name: Name,
    public_key: Annotated[str, typer.Argument(metavar="PUBKEY", help="What `operator-key new` prints.")],
    role: Annotated[str, typer.Option(help="operator: may order. viewer: may look at everything.")] = "operator",
    as_json: Json = False,
) -> None:
    """Let a key order this run from elsewhere, or only look. Given again with another role, it has that role."""
    from coordinator.run.folder import RunFolder
    from coordinator.run.operator_keys import KeyOrder

    run = RunFolder.open(folder)
    found = _changed(run, KeyOrder(name=name, public_key=public_key, role=role))
    address = address_of(run)
    if as_json:
        print_json({**found, "address": address})
        return
    print(f"{found['name']} may {'order' if found['role'] == 'operator' else 'look'}{_as_before(found)}")
    if address:
        print(f"there: barnraise status --at '{address}'")


@app.command("list")
def list_keys(folder: RunArgument, as_json: Json = False) -> None:
    """The keys that may order this run from elsewhere. (The run's own, in its folder, may too.)"""
    from coordinator.run.folder import RunFolder
    from coordinator.run.operator_keys import keys_of

    found = keys_of(RunFolder.open(folder))
    if as_json:
        print_json(found)
    elif found:
        print_table(_COLUMNS, found)
    else:
        print("no operator's key was added yet")


@app.command()
def revoke(folder: RunArgument, name: Name, as_json: Json = False) -> None:
    """Take a key back: its sessions end, and its logins on the page."""
    from coordinator.run.folder import RunFolder
    from coordinator.run.operator_keys import KeyOrder

    found = _changed(RunFolder.open(folder), KeyOrder(name=name))
    if as_json:
        print_json(found)
    else:
        print(f"{found['name']} may neither order nor look any more")


def login(
    folder: RunArgument,
    at: At = "",
    set_password: Annotated[
        bool, typer.Option("--set-password", help="Instead: have the page take a password, which is asked for.")
    ] = False,
    drop_password: Annotated[
        bool, typer.Option("--drop-password", help="Instead: have the page take no password.")
    ] = False,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Print an address of the run's page that logs in whoever opens it first, within a minute."""
    from coordinator.edge.operator_client import log_in
    from coordinator.run import password
    from coordinator.run.folder import RunFolder

    where = run_meant(folder, at)
    if set_password or drop_password:
        if not isinstance(where, RunFolder) or (set_password and drop_password):
            raise ConfigError("--set-password or --drop-password, one of them, and at the run folder alone")
        if set_password:
            password.set_password(where, passphrase(passphrase_fd, twice=True, word="Password"))
        else:
            password.drop_password(where)
        if as_json:
            print_json({"password": password.has_password(where)})
        else:
            print(f"the page takes {'this password' if set_password else 'no password'} from now on")
        return
    urls, good_for_s = log_in(where)
    if as_json:
        print_json({"urls": urls, "good_for_s": good_for_s})
        return
    for url in urls:
        print(url)
    print(
        f"good once, for {good_for_s:.0f} s; the first is for this run's own machine, or a tunnel to it",
        file=sys.stderr,
    )


def address_of(run: RunFolder) -> str:
    """What `--at` takes the first time; empty while no port is known."""
    from coordinator.run.reaching import last_port
    from protocol.joinlink import JoinLink

    settings = run.settings()
    port = settings.port or last_port(run)
    if not port:
        return ""
    host, dialled = settings.join_address(port)
    return str(JoinLink(host=host, port=dialled, fingerprint=run.authority().fingerprint))


def _changed(run: RunFolder, order: Any) -> dict[str, Any]:
    from coordinator.edge.operator_client import change_operator_key

    try:
        return change_operator_key(run, order)[0]
    except MalformedMessage as error:
        raise ConfigError(str(error)) from error


def _as_before(found: dict[str, Any]) -> str:
    return "" if found["changed"] else " (as before)"
