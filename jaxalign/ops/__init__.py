"""Building blocks that need jax alone: token log-probabilities and attention."""
