"""One run: its folder, how it is opened, driven (`pump.py`), backed up, verified and migrated."""
