"""Aggregation: norms, robust rules and the outer optimizer, as pure functions on tensors.

Knows nothing of network, rounds or files. Import from the modules; nothing is loaded here.
"""
