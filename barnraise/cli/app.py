"""The application: which commands there are, and that each of them ends in words and an exit code.

What an error means is decided in `barnraise/cli/endings.py`.
"""

from __future__ import annotations

import copy

import typer
from typer.models import TyperInfo

import barnraise.cli.coordinator as coordinator_commands
from barnraise.cli import (
    audit_log,
    calibrate,
    credit,
    data,
    doctor,
    entrance,
    evaluate,
    explain,
    export,
    forecast,
    fork,
    holds,
    identity,
    invites,
    logs,
    migrate,
    model,
    operator_keys,
    plan,
    pretrain,
    receipts,
    service,
    settings,
    simulate,
    standby,
    standings,
    status,
    worker,
)
from barnraise.cli.elsewhere import AtCommand
from barnraise.cli.endings import (
    EXIT_CORRECTABLE,
    EXIT_DONE,
    EXIT_UNFINISHED,
    ending_of,
    flushed,
    has_reader,
)
from barnraise.cli.output import speak_in_any_encoding
from protocol.terminal import EXIT_INTERRUPTED

app = typer.Typer(
    name="barnraise",
    help="Train mixture-of-experts models together, on the GPUs people already own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(worker.app, name="worker", rich_help_panel="Volunteer")
app.command("doctor", rich_help_panel="Volunteer")(doctor.doctor)
coordinator_commands.app.command("set", cls=AtCommand, context_settings={"ignore_unknown_options": True})(
    settings.set_setting
)
coordinator_commands.app.command("settings")(settings.list_settings)
coordinator_commands.app.command("invite", cls=AtCommand)(invites.invite)
coordinator_commands.app.command("ban", cls=AtCommand)(standings.ban)
coordinator_commands.app.command("unban", cls=AtCommand)(standings.unban)
coordinator_commands.app.command("pardon", cls=AtCommand)(standings.pardon)
coordinator_commands.app.command("rollback", cls=AtCommand)(standings.rollback)
coordinator_commands.app.command("stop", cls=AtCommand)(holds.stop)
coordinator_commands.app.command("pause", cls=AtCommand)(holds.pause)
coordinator_commands.app.command("drain", cls=AtCommand)(holds.drain)
coordinator_commands.app.command("resume", cls=AtCommand)(holds.resume)
coordinator_commands.app.command("announce", cls=AtCommand)(holds.announce)
coordinator_commands.app.command("orders", cls=AtCommand)(holds.orders)
coordinator_commands.app.command("login", cls=AtCommand)(operator_keys.login)
coordinator_commands.app.add_typer(invites.app, name="invites")
coordinator_commands.app.add_typer(operator_keys.app, name="operator-key")
coordinator_commands.app.command("credit")(credit.credit)
coordinator_commands.app.command("calibrate")(calibrate.calibrate)
coordinator_commands.app.command("explain")(explain.explain)
coordinator_commands.app.command("archive")(fork.archive)
coordinator_commands.app.command("fork")(fork.fork)
coordinator_commands.app.command("doctor")(entrance.doctor)
coordinator_commands.app.command("export")(export.export)
coordinator_commands.app.command("plan")(forecast.plan)
coordinator_commands.app.command("logs")(logs.logs)
coordinator_commands.app.command("migrate")(migrate.migrate)
coordinator_commands.app.command("standby-link")(standby.standby_link)
coordinator_commands.app.command("follow")(standby.follow)
coordinator_commands.app.command("promote")(standby.promote)
coordinator_commands.app.command("standby")(standby.standby)
coordinator_commands.app.command("witness")(standby.witness)
coordinator_commands.app.command("audit-log")(audit_log.audit_log)
worker.app.add_typer(identity.app, name="identity")
worker.app.add_typer(service.app, name="service")
worker.app.command("receipts")(receipts.receipts)
app.add_typer(receipts.app, name="receipt", rich_help_panel="Volunteer")
app.add_typer(coordinator_commands.app, name="coordinator", rich_help_panel="Operator")
app.command("status", cls=AtCommand, rich_help_panel="Operator")(status.status)
app.add_typer(data.app, name="data", rich_help_panel="Operator")
app.command("pretrain", rich_help_panel="Operator")(pretrain.pretrain)
app.command("plan", rich_help_panel="Operator")(plan.plan)
app.command("simulate", rich_help_panel="Researcher")(simulate.simulate)
app.command("demo", rich_help_panel="Researcher")(simulate.demo)
app.command("evaluate", rich_help_panel="Researcher")(evaluate.evaluate)
app.command("sample", rich_help_panel="Researcher")(model.sample)
app.command("version")(model.version)


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code. Whatever happens is told in one sentence."""
    speak_in_any_encoding()
    return flushed(_run(arguments, had_reader=has_reader()))


def _as_needed(arguments: list[str]) -> typer.Typer:
    """The application with the commands of that group alone which the line names: to build all seventy takes longer
    than the help of most."""
    named = next((word for word in arguments if not word.startswith("-")), "")
    needed = copy.copy(app)
    needed.registered_groups = [one if one.name == named else _closed(one) for one in app.registered_groups]
    return needed


def _closed(group: TyperInfo) -> TyperInfo:
    """Its name and help, and nothing in it."""
    closed = copy.copy(group)
    if group.typer_instance is not None:
        closed.typer_instance = copy.copy(group.typer_instance)
        closed.typer_instance.registered_commands, closed.typer_instance.registered_groups = [], []
    return closed


def _run(arguments: list[str], *, had_reader: bool) -> int:
    try:
        result = _as_needed(arguments)(args=arguments, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except typer.Exit as leaving:
        return leaving.exit_code
    except SystemExit as leaving:  # what typer and rich make of a broken pipe, whichever it was
        broken = leaving.__context__
        return ending_of(broken, had_reader=had_reader) if isinstance(broken, Exception) else EXIT_UNFINISHED
    except Exception as error:
        if (show := getattr(error, "show", None)) is None:
            return ending_of(error, had_reader=had_reader)
        show()  # a mistyped command line: typer knows how to say what is wrong with it
        return EXIT_CORRECTABLE
    return result if isinstance(result, int) else EXIT_DONE
