"""What is raised where a simulated run breaks a promise."""

from __future__ import annotations


class InvariantBroken(BaseException):
    """A promise that the system makes does not hold. No `Exception`: nothing that is simulated may deal with it."""
