"""What a run that asks for a proof of work takes of a machine that enrols, told as it goes.

Decides which price is too high; `protocol/admission.py` says what the work is. Touches nothing.
"""

from __future__ import annotations

from protocol.admission import MOST_WORK_BITS, work_for
from protocol.errors import MalformedMessage
from worker.progress import Reporter
from worker.words import say

HASHES_PER_S = 1e6
"""Of one core, as Python counts: for telling a volunteer how long a proof of work takes."""


def work_for_admission(run_id: str, public_key: bytes, bits: int, reporter: Reporter) -> bytes:
    """The price of a key, where the run has one: seconds to minutes of one core, told as it goes.

    MalformedMessage where it asks for more than anybody should.
    """
    if bits > MOST_WORK_BITS:
        raise MalformedMessage(f"the coordinator asks for a proof of work of {bits} bits; at most {MOST_WORK_BITS}")
    minutes = 2**bits / HASHES_PER_S / 60
    text = say("admission.short", bits=bits)
    if minutes >= 1:
        text = say("admission", bits=bits, minutes=f"{minutes:.0f}")
    reporter.say("admission_work", text, bits=bits)
    every = 2**bits // 4

    def on_tried(number: int) -> None:
        if number % max(every, 1 << 20) < 1 << 14:
            share = number / 2**bits
            reporter.say("admission_work", say("admission.progress", share=f"{share:.0%}"), bits=bits)

    return work_for(run_id, public_key, bits, on_tried)
