"""Slow commands: measure, aggregate, validate, export. Pure, from digests to an event; knows no clients."""
