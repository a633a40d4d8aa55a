"""Measured speed, as ratios: what is compared runs in turns in one process."""
