"""Aggregation rules as pure functions over `TensorSet`s."""
