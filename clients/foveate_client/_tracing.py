"""The trace that a call belongs to, where the caller uses OpenTelemetry."""

# ruff: noqa: PLC0415 - OpenTelemetry is the caller's, and may not be installed

import sys


def trace_headers() -> dict[str, str]:
    """Return the headers that carry the caller's context, such as `traceparent`.

    They are those of OpenTelemetry's global propagator; there are none where
    no span is active or OpenTelemetry is not used.
    """
    # A span can be active only where something has imported this.
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry import propagate

    headers: dict[str, str] = {}
    propagate.inject(headers)
    return {name.lower(): value for name, value in headers.items()}
