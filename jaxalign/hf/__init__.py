"""Hugging Face checkpoints in and out: reading, exporting, and checking an export against transformers."""
