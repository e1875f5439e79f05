"""The same classifier behind other servers, each run in an environment of its own."""
