"""The volunteer's rules: what they are, where they stand, and what follows from them."""
