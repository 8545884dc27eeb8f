"""Data that come with fedtune: synthetic clinical notes, and general text for pretraining."""
