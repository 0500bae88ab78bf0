"""The wire contract between a coordinator and its workers. Imports nothing heavy, and nothing of the other rooms."""
