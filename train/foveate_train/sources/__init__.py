"""Where classifiers come from: one module a source, all of the shape of registry.Source."""
