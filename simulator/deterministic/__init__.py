"""A whole run in one process under virtual time, from one seed: the real engine, pump, calls and worker sessions.

What is replaced: the clock and threads (loop.py), the disk (disk.py), the network (network.py), training and outer
steps (work.py). What is checked after every event: invariants.py. `world.run_seed` runs one seed.
"""
