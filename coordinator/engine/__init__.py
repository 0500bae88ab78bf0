"""The round engine: state in, events in, commands out. No clock, no files, no network, no torch, no asyncio."""
