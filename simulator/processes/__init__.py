"""A swarm of real processes over loopback: `barnraise simulate`."""
