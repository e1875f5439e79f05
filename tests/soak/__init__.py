"""Mixed traffic for an hour, after which a server must be as it was after its first minutes."""
