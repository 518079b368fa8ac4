"""In-process measurements: the gate's connections are fed by hand. Only here its code is imported."""
