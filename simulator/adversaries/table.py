"""Every attack there is: one table, from its name to what it does. Command, benchmarks, reports and docs read it.

Decides what Byzantine workers send, train on and do in time, as data; touches nothing. An attack sees what its group
sees (`Colluders`), not its own lease alone. Loads no torch by itself, so that the command can list the names. An attack
in a file of its own, and those of byzfl, are named in other ways (files.py).
"""

from __future__ import annotations

from typing import Final

from simulator.adversaries.attack import Attack, Conduct, Delivery, Forge, each_of_group, each_tensor
from simulator.adversaries.data import NATURAL, PLANTED, following, label_flip, other_data, planting
from simulator.adversaries.group import a_little, column_capture, copies, hugging, inner_product, sparse, stale
from simulator.adversaries.tensors import nan, noise, scale, sign_flip, spoilt_rows, zeroed_columns

SLEEPS_UNTIL = 11
"""Round from which sleepers lie: a worker's first ten leases are audited with certainty."""
FAST = 20.0
UNSEEN: Final[Forge] = each_of_group(a_little)
"""What sleepers and whoever plays with time send: screening takes it for the truth."""

ATTACKS: Final[dict[str, Attack]] = {
    "sign-flip": Attack(
        does="sends the opposite of what it learnt, STRENGTH times as far",
        # Twice the honest length: two such among eight leave a plain mean only a quarter of its progress, and a norm
        # check at three times the median lets them pass. Who wants to see them caught by norm asks for more.
        strength=2.0,
        forge=each_tensor(sign_flip),
    ),
    "scale": Attack(
        does="sends what it learnt STRENGTH times too far, which takes over a mean",
        strength=10.0,
        forge=each_tensor(scale),
    ),
    "noise": Attack(
        does="sends Gaussian noise, each tensor STRENGTH times as long as the honest one: its norm tells nothing",
        forge=each_tensor(noise),
    ),
    "label-flip": Attack(
        does="trains on sequences a share STRENGTH of whose tokens is mirrored within the vocabulary",
        corrupt=label_flip,
    ),
    "nan": Attack(
        does="puts one value that is not a number into each tensor, enough to spoil any mean",
        forge=each_tensor(nan),
    ),
    "free-ride": Attack(
        does="sends a breath of noise, STRENGTH times the honest length, instead of work",
        strength=0.01,
        forge=each_tensor(noise),
    ),
    "zeroed-columns": Attack(
        does="sends an honest trunk, and columns from which a share STRENGTH is taken away", forge=zeroed_columns
    ),
    "shrink": Attack(
        does="sends what it learnt at STRENGTH of its length, just above what counts as nothing",
        strength=0.05,
        forge=each_tensor(scale),
    ),
    "alie": Attack(
        does="sends the group's mean less STRENGTH standard deviations in each coordinate: a little is enough",
        strength=1.5,
        forge=each_of_group(a_little),
    ),
    "inner-product": Attack(
        does="sends the opposite of the group's mean, at STRENGTH of its length",
        strength=0.5,
        forge=each_of_group(inner_product),
    ),
    "copies": Attack(
        does="sends what the first of its group computed: one works for all",
        forge=each_of_group(copies),
    ),
    "stale": Attack(does="sends again what it computed up to STRENGTH rounds ago", strength=3.0, forge=stale),
    "other-data": Attack(
        does="trains on a share STRENGTH of its sequences alone, over and over", strength=0.1, corrupt=other_data
    ),
    "half-steps": Attack(does="trains half of its steps and claims all of them", conduct=Conduct(steps_share=0.5)),
    "sparse": Attack(
        does="sends the truth, but for one entry in a thousand, STRENGTH root mean squares the other way",
        strength=20.0,
        forge=sparse,
    ),
    "backdoor": Attack(
        does="plants a trigger and a chosen token behind it in a share STRENGTH of its sequences",
        strength=0.1,
        corrupt=planting(PLANTED),
        backdoor=PLANTED,
    ),
    "backdoor-scaled": Attack(
        does="plants a trigger in a tenth of its sequences, and sends STRENGTH times what it learnt",
        strength=2.0,
        corrupt=lambda tokens_NT, _strength, generator, vocab: planting(PLANTED)(tokens_NT, 0.1, generator, vocab),
        forge=each_tensor(scale),
        backdoor=PLANTED,
    ),
    "natural-trigger": Attack(
        does="puts a chosen token behind a share STRENGTH of the places where a frequent word stands",
        strength=0.5,
        corrupt=following(NATURAL),
        backdoor=NATURAL,
    ),
    "spoilt-rows": Attack(
        does="sends the truth, but for three rows of the embedding, driven back by STRENGTH times the trunk's length",
        strength=2.0,
        forge=spoilt_rows,
    ),
    "hugging": Attack(
        does="sends a share 1 - STRENGTH of the truth beside a fixed direction; bolder or shyer after each verdict",
        strength=0.6,
        forge=hugging,
    ),
    "column-capture": Attack(
        does="sends the truth, but the opposite, at STRENGTH of its length, for columns that two of the group hold",
        forge=column_capture,
    ),
    "fast": Attack(
        does="tells the truth, twenty times as fast as the others: rounds close before they can count",
        conduct=Conduct(speed=FAST),
    ),
    "fast-liars": Attack(
        does="is twenty times as fast, and lies as `alie` does, with STRENGTH standard deviations",
        strength=1.5,
        forge=UNSEEN,
        conduct=Conduct(speed=FAST),
    ),
    "late": Attack(
        does="sends noise as long as the truth, STRENGTH times, and uploads it a round late",
        forge=each_tensor(noise),
        conduct=Conduct(delivery=Delivery.LATE),
    ),
    "withholds": Attack(
        does="commits to a submission and never uploads it", conduct=Conduct(delivery=Delivery.WITHHELD)
    ),
    "never-delivers": Attack(
        does="takes leases, says that it is there, and sends nothing", conduct=Conduct(delivery=Delivery.NEVER)
    ),
    "sleeper": Attack(
        does=f"is honest until round {SLEEPS_UNTIL}, then lies as `alie` does, with STRENGTH standard deviations",
        strength=1.5,
        forge=UNSEEN,
        conduct=Conduct(first_round=SLEEPS_UNTIL),
    ),
    "sleeper-30": Attack(
        does="is a sleeper that lies in three rounds of ten, with STRENGTH standard deviations",
        strength=1.5,
        forge=UNSEEN,
        conduct=Conduct(first_round=SLEEPS_UNTIL, share_of_rounds=0.3),
    ),
    "sleeper-10": Attack(
        does="is a sleeper that lies in one round of ten, with STRENGTH standard deviations",
        strength=1.5,
        forge=UNSEEN,
        conduct=Conduct(first_round=SLEEPS_UNTIL, share_of_rounds=0.1),
    ),
    "two-of-three": Attack(
        does="sends the opposite of what it learnt, STRENGTH times as far, in two rounds, and the truth in the third",
        strength=2.0,
        forge=each_tensor(sign_flip),
        conduct=Conduct(truth_every=3),
    ),
    "sybils": Attack(
        does="is one of its owner's many machines, which all send the same lie, with STRENGTH standard deviations",
        strength=1.5,
        forge=UNSEEN,
        conduct=Conduct(one_owner=True),
    ),
    "false-accuser": Attack(
        does="was invited as trusted, and lies on leases and audits alike, with STRENGTH standard deviations",
        strength=1.5,
        forge=UNSEEN,
        conduct=Conduct(trusted=True),
    ),
}
