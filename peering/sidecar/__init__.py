"""The peer-to-peer network, in a process of its own: all that imports hivemind, spoken to over a socket.

Decides nothing about a run. Always: it holds no keys of the run, nor of a worker; what it is told to pass on, and what
it finds, is checked by the same rules as everywhere (peering/record.py); it ends with the process that started it, and
takes with it what it started. `peering/companion.py` starts it, as `python -m peering.sidecar`; nobody imports it.
"""
