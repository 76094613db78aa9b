"""Configuration, stages and the run folder."""
