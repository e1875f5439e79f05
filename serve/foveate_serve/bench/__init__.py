"""Compares engines, variants and batch sizes on this machine: `foveate bench`.

Needs the extra `bench` of foveate-serve. `results` and `document` hold what is
measured, `plan` what is to be measured, `worker` the process of one engine,
`measuring` the rounds over them, `report` the files that come of it.
"""
