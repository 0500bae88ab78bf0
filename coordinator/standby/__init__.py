"""Who leads a run when there are two machines for it: decisions alone, of leader, follower and witness."""
