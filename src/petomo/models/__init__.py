"""Modules that own the parameters of a forward model."""
