"""The exported graph: pixels in; logits, class activation maps and feature maps out."""
