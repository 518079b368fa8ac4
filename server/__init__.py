"""Composition: reads the environment, builds the parts, owns sockets and processes."""
