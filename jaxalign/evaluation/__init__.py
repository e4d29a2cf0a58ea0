"""What a model does on held-out pairs, per harm category."""
