"""What a bundle scores on labelled pictures."""
