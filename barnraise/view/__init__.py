"""The volunteer's full-screen view of a worker that runs."""
