"""The proof that a graph answers as the network does, and how far it may differ."""
