"""Measurements, each run as `python -m benchmarks.NAME`. Opacus installs a package of this name."""
