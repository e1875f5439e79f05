"""Sessions that compute int8 as their graph says."""

from typing import Any


def leave_to_floats(options: Any) -> None:
    """Have a session compute int8 in floating point, between the graph's QDQ pairs."""
    options.add_session_config_entry("session.disable_quant_qdq", "1")
