"""Pre-train through a masking curriculum."""
