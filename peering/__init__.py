"""Blocks from one worker to another: who has which (tracker.py), and the line between two workers."""
