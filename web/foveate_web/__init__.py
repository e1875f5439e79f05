"""The page: a client of a server, in a browser."""
