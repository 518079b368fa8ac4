"""What is kept: the log of readings, devices, clients; knows SQL, nothing of HTTP or tokens."""
