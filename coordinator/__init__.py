"""The coordinator: the round engine, which decides (`engine/`), and around it stores, slow work, a run and the network.

Imports point one way: `edge`, `run`, `work`, `store`, and last `engine` and `datasets`. See docs/ports.md.
"""
