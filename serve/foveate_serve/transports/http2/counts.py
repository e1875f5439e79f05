"""The counts of a connection, for `channelz`."""

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
        """Add the counts of another."""
        self.started += other.started
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.messages_sent += other.messages_sent
        self.messages_received += other.messages_received
        self.last_started = max(self.last_started, other.last_started)
