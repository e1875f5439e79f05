"""Observability: metrics, logs, traces and the status page."""
