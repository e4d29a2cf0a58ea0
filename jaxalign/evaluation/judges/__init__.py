"""Judges of generated answers: a harm score, a safe flag and perhaps a category for each, or "unjudged"."""
