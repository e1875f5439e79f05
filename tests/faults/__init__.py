"""What breaks around a server, made to break: `python -m tests.faults`, or `make faults`."""
