"""What operators see: metrics, logs, traces and the status page."""
