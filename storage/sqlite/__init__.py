"""The embedded engine: SQLite through apsw, one writer thread and a few reader threads."""
