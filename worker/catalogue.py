"""Every sentence that a worker says to its volunteer, with an id each: cause, what becomes of the work, what to do.

Decides words only. Holds always: a name in braces is a parameter; no text of a library, no exception's class and no
status of a call is in a sentence. `worker/words.py` says them, `worker/sentences.py` and whoever knows the cause choose
which. Not here yet are the sentences of planning, of a GPU that is not used, and of a lease's own files (worker/train,
worker/machine): tests/worker/test_catalogue.py has the list. Touches nothing.
"""

from __future__ import annotations

from typing import Final

_NEW_LINK = "Ask the run's operator for a new join link."
_LOOK = "look at this machine's connection"

_REACHING = {
    "hand.leased": "The lease is kept for as long as it lasts.",
    "hand.training": "Training goes on meanwhile.",
    "hand.unsent": "Your finished work is safe on this disk, and is sent as soon as the coordinator answers.",
    "unreached": "{what}{since}. {work} Trying again; Ctrl-C leaves.",
    "unreached.idle": "{what}{since}. Trying again; Ctrl-C leaves.",
    "unreached.since": " (for {span} now)",
    "unreached.connection-refused": "Nobody answers at {address}: the coordinator is not running there just now",
    "unreached.name-unknown": (
        "The name in {address} cannot be looked up: either this machine is offline, or it is mistyped"
    ),
    "unreached.no-route": f"There is no way to {{address}} from this network: {_LOOK}",
    "unreached.no-answer": "The coordinator at {address} does not answer in time",
    "unreached.not-a-coordinator": "What answers at {address} is not a coordinator of Barnraise",
    "unreached.wrong-certificate": "The coordinator at {address} is not that of the run that you joined",
    "unreached.broken-off": "The connection to {address} broke off",
    "unreached.overloaded": "The coordinator at {address} has too much to do, or is being stopped",
    "unreached.out-of-storage": "The coordinator at {address} has no room on its disk; its operator has to make some",
    "unreached.failed": "Something failed at the coordinator ({address}); its operator finds out what",
    "unreached.unreachable": "The coordinator at {address} cannot be reached",
    "unreached.fenced": "The run has moved from {address} to another machine",
    "reached_again": "The coordinator at {address} answers again, after {span}.",
    "moved": "the run answers at {address} now",
    "p2p.ended": "the peer-to-peer network's process ended ({why}); it is started again",
    "broken_upload": "{what}. Your finished work is safe on this disk; sending goes on where it stopped.",
}
"""Trouble that may pass."""

_FINAL = {
    "final.invite-unknown": f"The invite in this join link is not one of the run's. {_NEW_LINK}",
    "final.invite-used": (
        "This join link is used up: most links are for one machine. Ask the run's operator for a link of your own."
    ),
    "final.invite-expired": f"This join link has expired. {_NEW_LINK}",
    "final.invite-revoked": f"The run's operator took this join link back. {_NEW_LINK}",
    "final.not-enrolled": f"The run does not know this machine, or does not any more. {_NEW_LINK}",
    "final.other-version": "This barnraise and the coordinator's do not understand each other: update the older.",
    "final.banned": "{said}.",
    "final.too-many": "{said}.",
    "final.too-small": "This machine offers too little for this run: {said}.",
    "final.wrong-certificate": (
        "The coordinator at {address} is not the one that the join link names, so nothing was sent to it. Compare the"
        " link with what the operator sent you; if it is the same, ask for a new one."
    ),
    "final.malformed": (
        "What the coordinator at {address} sent is not what was agreed, so none of it was used. Tell the run's"
        " operator."
    ),
    "final.local-storage": (
        "A file of the worker's cannot be read or written: make room on this machine's disk, or see whether it is"
        " sound, and join again."
    ),
    "final.session-ended": f"The coordinator at {{address}} does not let this machine in. {_NEW_LINK}",
    "final.refused": "The coordinator refused this machine: {said}.",
    "final.out-of-memory": (
        "The system ended the part of the worker that computes again and again, most likely because memory ran out."
        " Close other programs, or offer less with --memory, and start the worker again."
    ),
    "final.device-failed": (
        "The part of the worker that computes does not run on this machine. See what barnraise doctor finds, or try"
        " without a GPU: --device cpu."
    ),
    "final.training-failed": (
        "The part of the worker that computes failed on this machine. See what barnraise doctor finds, and update it."
    ),
    "final.passing": "{what}.",
    "kept_for_later": "{why} Your finished work is kept on this disk, and sent when you join again.",
    "device_lost": (
        "The GPU went away: its driver was reset, or this machine slept. It is opened anew by another process, which"
        " goes on with the lease from what is kept of it."
    ),
    "started_too_often": (
        "The GPU went away {times} times in a row, so the worker is not started again. Update the GPU's driver, see"
        " whether it gets too hot, or train without it: --device cpu."
    ),
    "trainer_killed": (
        "The system ended the part of the worker that trains, most likely because memory ran out. It is started again"
        " and goes on at the last saved step. If that happens again, close other programs, or offer less with --memory."
    ),
    "trainer_gone": (
        "The part of the worker that trains broke off: the GPU's driver was reset, this machine slept, or a library"
        " failed. It is started again and goes on at the last saved step."
    ),
    "left": "left: {why}",
    "left.handed_back": "the lease is handed back",
    "left.not_taken": "left; the coordinator knows of no lease to hand back any more",
    "left.session_over": "left; the session had ended",
    "left.unanswered": "left without the coordinator's answer; what was held goes to another machine at its deadline",
    "run_over": "the run is over: {why}",
    "leaving": "leaving: {why}",
    "leave.finished": "it has finished its last lease, as you asked",
    "leave.asked": "you asked it to leave",
    "leave.ctrl_c": "stopped with Ctrl-C",
    "leave.closed": "the terminal was closed",
    "leave.stopped": "asked to stop",
}
"""Trouble that does not pass by trying again, and other ends."""

_LEASES = {
    "failed.out-of-memory": (
        "This machine ran out of memory in training. Close other programs, or offer less of it with --memory or"
        " --columns."
    ),
    "failed.device-failed": (
        "The GPU failed in training. If that happens again, update its driver, or train without it: --device cpu."
    ),
    "failed.training-failed": "Training failed on this machine.",
    "failed.local-storage": (
        "This machine's disk failed in the middle of a lease; make room on it, or look at its health."
    ),
    "failed.malformed": (
        "What the coordinator sent for this lease is not what the run has signed, so none of it was used. Tell the"
        " run's operator."
    ),
    "failed.lease-ended": "The coordinator ended this lease before its data was here.",
    "failed": "{what} The lease goes back, and another machine does it.",
    "failed.here": "This lease cannot be done here{why}.",
    "failed.too_often": "{times} leases in a row failed on this machine",
    "why": " ({why})",
    "session_lost": "The coordinator was restarted, or this machine was away for long: signing in again.",
    "session_lost.training": (
        "The coordinator was restarted, or this machine was away for long: signing in again. Training goes on"
        " meanwhile."
    ),
    "lease_ended": "This lease is over{why}. What was trained for it is lost; another is asked for.",
    "submission_refused": "The coordinator did not take this work{why}, so it is dropped; another lease is asked for.",
    "submission_kept": (
        "The coordinator did not take this work just now{why}. It is safe on this disk, and is offered again in {span}."
    ),
    "held_up": (
        "Two pieces of finished work wait for this machine's uplink; the next lease is asked for when one of them is"
        " sent."
    ),
    "paused": "Paused: {why}.",
    "paused.finishes": "Paused: {why}. What is in training is finished and sent first.",
    "paused.waits": "Paused: {why}. What was in training waits at its last saved step.",
    "slowed": "Training works {share} of the time now: {why}.",
    "slowed.over": "Training works all of the time again.",
    "resumed": "Work is welcome again: going on.",
    "lease_unwanted": "This lease goes back: {why}. Another is asked for in {span}.",
    "lease_unwanted.long": "it lasts {span}, and the rules of this machine accept {most} at most",
    "out_of_time": "{why}. The lease goes back, and another machine does it.",
    "late.will": "This pause will last too long for the lease that waits for its end",
    "late.has": "This pause has lasted too long for the lease that waits for its end",
    "waiting": "waiting: {why}",
    "still_waiting": "still waiting, for {span} now: {why}",
    "time_spent": (
        "in the {span} since the lease before, this machine trained for {trained} ({share}), fetched for {fetched} and"
        " sent for {sent}"
    ),
    "granted": "round {round}: {steps} steps on columns {columns}",
    "fetched": "fetched {amount}",
    "fetched.shared": "fetched {amount}, {shared} of it from other workers",
    "no_room": "paused: {why}",
    "trained": "trained {tokens} tokens in {span}, loss {first} to {last}",
    "uploaded": "sent {amount}",
    "opened": "an audit asked for what an encoding lost: sent {amount}",
    "step": "step {done} of {total}, {speed} tokens/s",
    "step.loss": "step {done} of {total}, loss {loss}, {speed} tokens/s",
    "verdict.accepted": "your work for lease {lease} was accepted: {why}",
    "verdict.rejected": "your work for lease {lease} was not accepted: {why}",
    "verdict.pending": "your work for lease {lease} is being looked at: {why}",
    "credit.none": "nothing is credited to this machine yet: that comes with the first work that is accepted",
    "credit": "your work so far: {tokens} validated tokens, rank {rank} of {ranked}",
}

_BEGINNING = {
    "crew": "{count} workers, a process for each of {devices}",
    "crew.ended": "a worker of this machine has ended; the others go on",
    "turns": "working for {runs} runs in turns, by their shares",
    "machine": "{device}: {name}, {memory} offered",
    "no_commands": "the commands pause, status and so on do not reach this worker: {why}",
    "enrolled": "enrolled as worker {worker}",
    "enrolled.trusted": "enrolled as trusted as worker {worker}",
    "connected": "connected to {name} (run {run})",
    "not_measuring": "--measure: the whole model does not fit in the memory that is offered: nothing is measured here",
    "disk_planned": "--disk leaves room for {columns} columns",
    "speed": "speed: {speed} tokens/s",
    "admission": (
        "this run asks for a proof of work ({bits} bits) before it takes a new machine: about {minutes} min of one core"
    ),
    "admission.short": (
        "this run asks for a proof of work ({bits} bits) before it takes a new machine: a few seconds of one core"
    ),
    "admission.progress": "proof of work: {share} of what it takes on average",
    "sharing": (
        "sharing: other workers of this run learn this machine's address and take blocks from its port {port}, where"
        " you said so with --share"
    ),
    "sharing.relayed": (
        "others reach this machine through {relays} of the run's relays now: what it gives passes through these, and"
        " they cannot read it"
    ),
    "relaying": (
        "relay: what workers give that nobody can connect to may pass through this machine, where you said so with"
        " --be-relay. Each byte comes in and goes out again, within the rate of --share and your rules; it counts twice"
    ),
    "not_sharing": "nothing is shared with other workers: {why}",
    "sharing.untold": "what is shared could not be announced just now; it is told again with the next session",
    "archive.begun": "version {version} is being archived here: {amount} to fetch",
    "archived": "version {version} is archived here, whole: {folder} is what `barnraise coordinator fork` goes on from",
    "archive.none": "nothing is archived here: {why}",
    "archive.not_given": "this run's coordinator gives no whole versions to workers",
    "archive.no_room": (
        "version {version} is not archived here: {amount} more, beside what a lease needs, do not fit into the disk"
        " that this run may take"
    ),
    "archive.later": "version {version} could not be archived just now; it is tried again: {why}",
    "measured.version": "version {version}, for the coordinator: measured",
    "measured.submission": "a submission of somebody else, for the coordinator: measured",
    "measured.unheard": "{what}; nobody waits for it any more",
    "unmeasured.version": "version {version}, for the coordinator: could not be measured here, so it is done elsewhere",
    "unmeasured.submission": (
        "a submission of somebody else, for the coordinator: could not be measured here, so it is done elsewhere"
    ),
    "rules.changed": "your rules were changed, and are in force",
    "rules.senseless": "the rules were changed and make no sense, so those of before go on: {why}",
}

_STANDING = {
    "doing.leaving": "leaving",
    "doing.leaving.holding": "leaving; what it holds goes back",
    "doing.sending_too": "{doing}; sending what it finished before",
    "doing.paused": "paused: {why}",
    "doing.paused.holding": "paused: {why}; its lease waits at the last saved step",
    "doing.slowed": "{doing}; at {share} of its speed: {why}",
    "doing.last": "{doing}; no new work after that: {why}",
    "doing.measuring": "measuring how fast this machine is, once for each run",
    "doing.looking": "looking for the coordinator at {address}",
    "doing.fetching": "fetching what the next lease needs",
    "doing.sending": "sending what it finished",
    "doing.returning": "handing a lease back",
    "doing.waiting": "waiting: {why}",
    "doing.idle": "waiting for work",
    "doing.training.first": "training: the first step is on its way",
    "doing.training": "training: {step}",
    "doing.training.left": "training: {step}, about {span} left",
    "until": "{why}, until {moment}",
    "no.pause": "you paused it",
    "no.finish": "you asked it to finish and leave",
    "no.schedule": "outside its hours",
    "no.idle": "somebody is using this machine",
    "no.battery": "on battery",
    "no.battery_low": "the battery is at {percent} %",
    "no.program": "{program} is running",
    "no.gpu_off": "GPU {number} is switched off in the rules",
    "no.gpu_busy": "another program is using the GPU",
    "no.gpu_hot": "the GPU is at {celsius} °C, and work goes on at {cool} °C",
    "no.gpu_power": "even at its slowest the GPU takes more than the {most} W that your rules allow",
    "no.cpu_hot": "the processor is at {celsius} °C, and work goes on at {cool} °C",
    "no.metered": "the connection is metered",
    "no.daily": "today's {amount} of traffic are used up",
    "no.monthly": "this month's {amount} of traffic are used up",
    "no.licence": "the data of this run is under {licence}, which your rules do not accept",
    "no.licence_told": "the data of this run has no licence that is told",
    "slow.gpu_hot": "the GPU is at {celsius} °C, and your rules allow {most} °C",
    "slow.cpu_hot": "the processor is at {celsius} °C, and your rules allow {most} °C",
    "slow.gpu_power": "your rules allow the GPU {most} W",
    "no.unknown": "a rule cannot be checked here: {why}",
}
"""What the worker does, why, and until when."""

SENTENCES: Final[dict[str, str]] = {**_REACHING, **_FINAL, **_LEASES, **_BEGINNING, **_STANDING}
