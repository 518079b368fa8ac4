"""Measurements: one contract on every target, verified before it is measured. Speaks HTTP to processes."""
