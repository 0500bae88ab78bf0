"""The page: what everybody may see of a run, `/metrics`, and operators' door, over HTTP on a thread of its own."""
