"""What a stranger may send, changed at random: `python -m tests.fuzz`, or `make fuzz`."""
