"""From a batch to the next state: objective, step, loop, reference pass, checkpoints, metrics."""
