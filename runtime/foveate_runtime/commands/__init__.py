"""The subcommands of `foveate` that need no server."""
