"""The request engine: admission, pictures, batching, and the answer."""
