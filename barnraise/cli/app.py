"""The application: which commands there are, and how errors and Ctrl-C end.

Decides exit codes: 0 done, 1 the work did not finish, 2 something the person at the keyboard can correct, 130 Ctrl-C.
"""

from __future__ import annotations

import sys

import typer

import barnraise.cli.coordinator as coordinator_commands
from barnraise.cli import data, evaluate, model, pretrain, simulate, worker
from barnraise.cli.output import say_error
from protocol.errors import BarnraiseError

EXIT_CORRECTABLE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="barnraise",
    help="Train mixture-of-experts models together, on the GPUs people already own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(worker.app, name="worker", rich_help_panel="Volunteer")
app.add_typer(coordinator_commands.app, name="coordinator", rich_help_panel="Operator")
app.command("status", rich_help_panel="Operator")(coordinator_commands.status)
app.add_typer(data.app, name="data", rich_help_panel="Operator")
app.command("pretrain", rich_help_panel="Operator")(pretrain.pretrain)
app.command("plan", rich_help_panel="Operator")(model.plan)
app.command("simulate", rich_help_panel="Researcher")(simulate.simulate)
app.command("demo", rich_help_panel="Researcher")(simulate.demo)
app.command("evaluate", rich_help_panel="Researcher")(evaluate.evaluate)
app.command("sample", rich_help_panel="Researcher")(model.sample)
app.command("version")(model.version)


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        result = app(args=arguments, standalone_mode=False)
    except BarnraiseError as error:
        say_error(str(error))
        return EXIT_CORRECTABLE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except typer.Abort:
        return EXIT_INTERRUPTED
    except typer.Exit as leaving:
        return leaving.exit_code
    except Exception as error:
        if (show := getattr(error, "show", None)) is None:
            raise
        show()  # a mistyped command line: typer knows how to say what is wrong with it
        return EXIT_CORRECTABLE
    return result if isinstance(result, int) else 0
