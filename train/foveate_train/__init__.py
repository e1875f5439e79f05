"""Classifiers, data and training."""
