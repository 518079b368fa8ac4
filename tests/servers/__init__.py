"""Real PostgreSQL, Redis and pgbouncer, started by the tests on free ports in own directories."""
