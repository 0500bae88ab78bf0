"""Training a lease: the inner loop, its optimizer, what is kept so that it can go on, the thread that it runs in."""
