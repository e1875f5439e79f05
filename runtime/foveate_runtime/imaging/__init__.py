"""From encoded pictures to the classifier's input, and from maps back to pictures."""
