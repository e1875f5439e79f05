"""Pictures of what a classifier computes; a module a kind."""
