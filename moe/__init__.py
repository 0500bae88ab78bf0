"""A model as trunk and expert columns: layout, exact slice and merge, trainable shard, presets, export.

Empty on purpose: its modules import torch and transformers, which the command line must not pay for.
"""
