"""W&B sweep files searched by Optuna, without an account or a network."""
