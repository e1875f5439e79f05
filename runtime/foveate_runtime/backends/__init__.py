"""What runs a bundle's graph: one folder a backend, all behind `base.Runner`."""
