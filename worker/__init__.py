"""The volunteer's side: take leases, train shards, send pseudo-gradients. Dials out, and listens only where
its volunteer said `--share`.

Importing this package costs nothing; torch and grpc load with the modules that need them.
"""
