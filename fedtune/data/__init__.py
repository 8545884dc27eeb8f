"""Rows in files become examples; examples are split by privacy unit and divided into silos."""
