"""Data on the host: read preference pairs, tokenise them, serve batches. Numpy only, no jax computation."""
