"""The volunteer's side: take leases, train shards, send pseudo-gradients. Only ever dials out.

Importing this package costs nothing; torch and grpc load with the modules that need them.
"""
