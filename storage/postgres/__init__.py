"""PostgreSQL as the storage of many processes and nodes."""
