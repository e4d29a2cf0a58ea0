"""What a train step would need of a TPU slice that nobody has rented yet, from the program that the TPU would run."""
