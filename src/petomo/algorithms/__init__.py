"""Solvers as generators yielding a status."""
