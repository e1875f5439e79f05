"""What a network computes: its layers, where their maps lie, and what stands at its end."""
