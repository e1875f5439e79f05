"""Compares engines, variants and batch sizes on this machine: `foveate bench`.

`results` and `document` hold what is measured, `plan` what is to be measured, `worker` the
process of one engine, `measuring` the rounds over them, `report` the files that come of it.
"""
