"""What a worker can tell of its machine besides what it trains on: one port, a few real senses, a fake for tests."""
