"""Resolution, atoms, figures and the report."""
