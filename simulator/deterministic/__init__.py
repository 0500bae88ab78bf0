"""A whole run in one process under virtual time, from one seed: the real engine, pump, calls and workers.

What is replaced: clock and threads (loop.py), disks (disk.py, volunteer_disk.py), the line (network.py, calls.py), and,
with hashes, training and outer steps (trainer.py, cheap_executor.py). What is checked after every event: invariants.py.
`world.run_seed` runs one seed.
"""
