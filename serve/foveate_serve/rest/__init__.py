"""HTTP: the Open Inference Protocol's REST form, and pictures posted to be classified."""
