"""The coordinator towards the network: gRPC services, sessions, limits, the operator's calls. Knows no tensors."""
