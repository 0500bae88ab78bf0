"""A worker that starts with its user's session: the systems' own files for that, and what puts them there."""
