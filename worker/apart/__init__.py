"""The trainer in a process of its own: torch, the model and the GPU live there, and go when it goes."""
