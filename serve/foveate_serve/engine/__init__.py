"""The path of a request: what it asks, its admission, its picture, its batch, its answer."""
