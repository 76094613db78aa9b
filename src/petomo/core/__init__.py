"""Grids, electrons, poses and data handles: no physics, no files."""
