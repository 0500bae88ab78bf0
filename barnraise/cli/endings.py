"""How a command ends: each error as one sentence, and the exit code that goes with it (docs/commands.md has the table).

Decides codes and last words. Always: no traceback reaches a person; what nobody foresaw is written to a private file,
which is named. A reader that went away (`| head`) ends a command quietly. Touches standard output, standard error and,
in the last resort, one new file in the user's folder for state, or in the system's for temporary files.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from pathlib import Path
from typing import TextIO

from barnraise.cli.output import say_error
from protocol.errors import BarnraiseError, LocalError

EXIT_DONE = 0
EXIT_UNFINISHED = 1
EXIT_CORRECTABLE = 2
EXIT_FAULT = 70
"""A fault of the program itself; the number is sysexits.h's EX_SOFTWARE."""

_OUTPUT = Path("the output")


def has_reader() -> bool:
    """Whether standard output goes anywhere: asked before a command begins, and given to `ending_of`."""
    try:
        return not os.path.samestat(os.fstat(sys.stdout.fileno()), Path(os.devnull).stat())
    except (OSError, ValueError, AttributeError):
        return False


def ending_of(error: Exception, *, had_reader: bool) -> int:
    """Say what `error` means, and return the exit code."""
    # rich points the output nowhere as soon as it finds that its reader is gone.
    if isinstance(error, BrokenPipeError) and (_reader_is_gone() or (had_reader and not has_reader())):
        return EXIT_DONE
    sentence = None if isinstance(error, LocalError) else _sentence_for(error)
    if sentence is not None:
        say_error(sentence)
        return EXIT_CORRECTABLE
    said = f" ({error})" if isinstance(error, LocalError) else ""
    say_error(f"this is a fault of the program, not of yours{said}. What was done before it is kept. {_report(error)}")
    return EXIT_FAULT


def flushed(code: int) -> int:
    """Send out what is still in the buffers; `code`, or another where that was not possible."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError) as error:
            from protocol.storage import disk_error_number, storage_trouble

            _silence(stream)
            number = disk_error_number(error)
            if code == EXIT_DONE and number is not None:
                say_error(str(storage_trouble(number, _OUTPUT)))
                code = EXIT_CORRECTABLE
    return code


def _sentence_for(error: Exception) -> str | None:
    """For everything that a person can do something about; None for the rest."""
    from protocol.storage import disk_error_number, storage_trouble

    if isinstance(error, BarnraiseError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _says(error, "allocate memory"):
        return (
            "this machine has too little free memory for this: close other programs, or take a smaller model, batch "
            "or sequence length"
        )
    if _says(error, "home directory"):  # pathlib and platformdirs, where neither HOME nor the user's entry tells
        return "no home folder is known for this user: write paths out in full instead of with ~, or set HOME"
    if not isinstance(error, OSError):
        return None
    number = disk_error_number(error)
    if error.filename is None:
        return None if number is None else str(storage_trouble(number, _OUTPUT))
    where = Path(os.fsdecode(error.filename))
    if number is not None:
        return str(storage_trouble(number, where, "use"))
    return f"cannot use {where}: {(error.strerror or 'no reason given').lower()}"


def _says(error: Exception, words: str) -> bool:
    return isinstance(error, RuntimeError) and words in str(error).lower()


def _report(error: Exception) -> str:
    """Write the traceback where only this user can read it; the sentence that names the file."""
    import tempfile
    import traceback

    text = "".join([f"{' '.join(sys.argv[:1])}, Python {sys.version}\n\n", *traceback.format_exception(error)])
    for choose in (_state_folder, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError, RuntimeError):
            folder = choose()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            started = time.strftime("%Y%m%d-%H%M%S")
            descriptor, path = tempfile.mkstemp(prefix=f"barnraise-fault-{started}-", suffix=".txt", dir=folder)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return f"Please report it with {path}, which may name files and addresses of yours"
    return f"Please report it; its traceback could not be written anywhere: {text}"


def _state_folder() -> Path:
    import platformdirs

    return platformdirs.user_state_path("barnraise", appauthor=False) / "faults"


def _reader_is_gone() -> bool:
    """Whether nobody reads our output any more; otherwise it was another pipe that broke."""
    return any(stream is not None and _is_broken(stream) for stream in (sys.stdout, sys.stderr))


def _is_broken(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # an error is told unasked
        return bool(poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False


def _silence(stream: TextIO) -> None:
    """Let what is left in the buffer go nowhere: Python would complain about it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
