"""`barnraise worker join LINK` as a function: from a link to an exit code.

Decides that a mistake in what was asked for is told before anything heavy is imported, and that the process is gone
within two seconds of a signal (worker/signals.py), even if the device is in the middle of a step. Exit codes: 0 the run
is over or the volunteer left, 1 leases failed, 2 refused or wrongly configured, 75 the device has to be opened anew by
another process, which the command starts (worker/again.py). Imports grpc only when it runs, and torch never,
but for a simulation: that is the trainer's process (worker/apart).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from protocol.collection import collect_as_usual, collect_rarely, keep_what_is_read
from protocol.errors import ConfigError, RemoteError
from protocol.parent import end_with_parent
from protocol.terminal import outliving_terminal
from worker.lease import printable
from worker.messages import EXIT_DEVICE_LOST
from worker.options import WorkerOptions
from worker.rejoin import home_root, links_of
from worker.sentences import refusal
from worker.trouble import trouble_of

__all__ = ["WorkerOptions", "run_worker"]


def run_worker(options: WorkerOptions) -> int:
    """Join the run behind `options.link` and work until it is over or a signal comes. Owns its process.

    Without a link, work for all runs that this machine is enrolled in, in turns (worker/turns.py).
    """
    from worker.progress import make_reporter

    end_with_parent(signal.SIGTERM)  # in a crew (worker/crew.py): it is asked to leave when that is gone
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC prints by itself is not for who reads these lines
    with outliving_terminal():
        reporter, address = make_reporter(options.output), ""
        try:
            root = home_root(options.first_home or options.home)
            links = links_of(options.link, root)  # before imports that take seconds
            address = links[0].address
            collect_rarely()
            from worker.rules.peers import with_peers_ruled
            from worker.runs import work_for

            keep_what_is_read()
            collect_as_usual()
            exit_code, thread_ended = asyncio.run(work_for(with_peers_ruled(options, root), links, reporter))
        except (ConfigError, RemoteError) as error:
            trouble = trouble_of(error)
            reporter.say("failed", refusal(trouble.cause, trouble.detail, address), detail=printable(str(error)))
            return 2
        finally:
            reporter.close()
        if not thread_ended and exit_code != EXIT_DEVICE_LOST:
            # A step on the device cannot be interrupted, and the interpreter would wait for it or crash under it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(exit_code)
        return exit_code
