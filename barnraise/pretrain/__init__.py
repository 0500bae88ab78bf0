"""Training in one place: before a run, or to measure a swarm against."""
