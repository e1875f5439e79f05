"""Classifies any number of pictures into a table, and goes on where it was cut off.

sources  -> pictures, one by one: folders, lists, tar shards, Parquet tables
stream   -> their results, in the order of the pictures, through a client
ray_data -> the same through clients in workers of a Ray cluster
journal  -> what is known so far, safe against a kill at any moment
tables   -> the finished file: Parquet, CSV or JSON Lines
evaluation, report -> accuracy, confusions and calibration where the right classes are known
"""
