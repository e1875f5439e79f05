"""Dynamic batching: a queue of pictures, the batches that form from it, and their runs."""
