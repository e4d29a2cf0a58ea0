"""What the commands do: data, model, mesh and state put together from a configuration."""
