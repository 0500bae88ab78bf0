"""The volunteer's machine: what it has, and how fast it is."""
