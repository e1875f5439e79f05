"""Trust in an answer: calibrated confidence, prediction sets, outliers.

Everything here works on arrays of logits.
"""
