"""The bundle: what export writes and serve loads."""
