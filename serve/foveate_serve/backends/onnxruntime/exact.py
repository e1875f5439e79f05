"""Sessions that compute int8 as their graph says."""

from typing import Any

from foveate_serve.backends.integers import adds_exactly


def keep_exact(options: Any) -> None:
    """Have a session leave int8 to floating point where the processor does not add exactly."""
    if not adds_exactly():
        options.add_session_config_entry("session.disable_quant_qdq", "1")
