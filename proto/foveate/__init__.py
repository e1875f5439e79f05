"""The services of Foveate: generated stubs in `foveate.v1` and `foveate.inference`."""
