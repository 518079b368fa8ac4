"""Live streams: a crowd of followers that checks every byte, and the scenarios that are measured with it."""
