"""How far an answer can be believed: calibrated confidence, prediction sets, outliers.

Everything here works on arrays of logits.
"""
