"""A swarm in one process: the real engine, executor and training under a clock that only events move."""
