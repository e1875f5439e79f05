"""The subcommands that this distribution brings."""
