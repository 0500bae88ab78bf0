"""The command `barnraise` and `python -m barnraise`. Decides nothing: it hands over to the command line's application.

Kept free of heavy imports, because each process that a simulation starts imports this module again.
"""

from __future__ import annotations

import sys

from protocol.collection import collect_rarely


def main() -> int:
    """Run the command line; returns the process's exit code."""
    try:
        collect_rarely()
        from barnraise.cli.app import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:  # before the command line could take it, or while it ended
        return 130


if __name__ == "__main__":
    sys.exit(main())
