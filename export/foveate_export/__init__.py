"""Export of classifiers to bundles."""
