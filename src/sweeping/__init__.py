"""W&B sweep files run in local processes, without an account or a network."""
