"""Engines that run coordinator and silos on one machine."""
