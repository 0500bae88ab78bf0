"""One command for each benchmark: `python -m benchmarks.NAME [--quick] [--json FILE]`."""
