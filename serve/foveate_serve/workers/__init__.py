"""Several processes on one address: a supervisor and its workers."""
