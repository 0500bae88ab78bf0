"""The page: what everybody may see of a run, and `/metrics`, over HTTP on a thread of its own."""
