"""A machine of a virtual swarm: how fast it is, what it holds, how often it vanishes, and whose it is. Data alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from protocol.ids import WorkerId, digest_of
from simulator.adversaries.attack import Conduct


@dataclass(frozen=True, slots=True, kw_only=True)
class Volunteer:
    """One simulated machine."""

    name: str
    step_s: float = 1.0
    """Seconds an inner step takes it."""
    upload_s: float = 1.0
    """Seconds a submission takes from its commit to its last byte."""
    max_columns: int = 0
    """0: all."""
    dropout: float = 0.0
    """Probability that it vanishes in mid-lease, and is back only after it has been given up."""
    owner: str = ""
    """Whose machine it is, as the operator knows; empty: nobody's but its own."""
    trusted: bool = False
    """Whether its invite said so."""
    from_round: int = 0
    """The round in which it enrols; 0: it is there when the run begins."""

    @property
    def worker(self) -> WorkerId:
        """Its key's fingerprint, if it had one."""
        return WorkerId(digest_of(f"volunteer {self.name}".encode()))


def as_liar(volunteer: Volunteer, conduct: Conduct) -> Volunteer:
    """The machine of a liar: as fast, as trusted and with as many sisters as its attack says."""
    return replace(
        volunteer,
        step_s=volunteer.step_s / conduct.speed,
        upload_s=volunteer.upload_s / conduct.speed,
        owner="one of many machines" if conduct.one_owner else volunteer.owner,
        trusted=volunteer.trusted or conduct.trusted,
    )
