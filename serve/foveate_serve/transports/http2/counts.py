"""What a connection has seen: see `channelz`."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Of calls, or streams, and their messages."""

    started: int = 0
    succeeded: int = 0
    failed: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    last_started: float = 0.0
    """A time of `time.time`."""

    def add(self, other: "Counts") -> None:
        """Count what another has counted, too."""
        self.started += other.started
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.messages_sent += other.messages_sent
        self.messages_received += other.messages_received
        self.last_started = max(self.last_started, other.last_started)
