"""What a run that asks for a proof of work takes of a machine that enrols, told as it goes.

Decides which price is too high; `protocol/admission.py` says what the work is. Touches nothing.
"""

from __future__ import annotations

from protocol.admission import MOST_WORK_BITS, work_for
from protocol.errors import MalformedMessage
from worker.progress import Reporter

HASHES_PER_S = 1e6
"""Of one core, as Python counts: for telling a volunteer how long a proof of work takes."""


def work_for_admission(run_id: str, public_key: bytes, bits: int, reporter: Reporter) -> bytes:
    """The price of a key, where the run has one: seconds to minutes of one core, told as it goes.

    MalformedMessage where it asks for more than anybody should.
    """
    if bits > MOST_WORK_BITS:
        raise MalformedMessage(f"the coordinator asks for a proof of work of {bits} bits; at most {MOST_WORK_BITS}")
    minutes = 2**bits / HASHES_PER_S / 60
    expected = f"about {minutes:.0f} min" if minutes >= 1 else "a few seconds"
    text = f"this run asks for a proof of work ({bits} bits) before it takes a new machine: {expected} of one core"
    reporter.say("admission_work", text, bits=bits)
    every = 2**bits // 4

    def on_tried(number: int) -> None:
        if number % max(every, 1 << 20) < 1 << 14:
            share = number / 2**bits
            reporter.say("admission_work", f"proof of work: {share:.0%} of what it takes on average", bits=bits)

    return work_for(run_id, public_key, bits, on_tried)
