"""PostgreSQL: the log that many processes share."""
