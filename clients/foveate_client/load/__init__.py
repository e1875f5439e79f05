"""Puts a server under load and measures it.

workload  -> the requests, of one or several kinds, serialised beforehand
driver    -> when they are sent: at a fixed concurrency, or at the times of a Poisson process
recorder  -> the measurements: latencies, errors by code, throughput
search    -> the highest rate whose latency stays within an objective
plot      -> the distribution of the latencies as a picture
"""
