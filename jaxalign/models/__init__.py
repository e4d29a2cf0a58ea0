"""The Llama-family decoder: configuration, modules, adapters, and the functions that the rest uses."""
