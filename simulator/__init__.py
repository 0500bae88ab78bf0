"""A swarm in one machine: the real coordinator and real workers, with the dropouts and attackers that you choose."""
