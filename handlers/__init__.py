"""What each endpoint does: from a Request to a Response, without sockets and without SQL."""
