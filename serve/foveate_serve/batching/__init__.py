"""From pictures that wait to batches that run."""
