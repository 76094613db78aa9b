"""Tilt series simulated from rotated atoms."""
