"""The coordinator: the round engine (`engine/`), the data (`datasets/`), and the edges around both."""
