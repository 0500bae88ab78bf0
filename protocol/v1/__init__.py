"""Version 1 of the wire contract: the .proto and the code generated from it (`python -m protocol.generate`)."""
