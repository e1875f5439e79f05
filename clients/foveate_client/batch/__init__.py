"""Classifies any number of pictures into a table, and resumes an interrupted run.

sources  -> pictures, one by one: folders, lists, tar shards, Parquet tables
stream   -> their results, in the order of the pictures, through a client
ray_data -> the same through clients in workers of a Ray cluster
journal  -> the results so far, on disk: a kill at any moment loses none
tables   -> the finished file: Parquet, CSV or JSON Lines
evaluation, report -> accuracy, confusions and calibration where the right classes are known
"""
