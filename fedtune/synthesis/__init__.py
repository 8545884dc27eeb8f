"""Synthetic text: drawn from a run's model by label, its privacy, and what it is good for."""
