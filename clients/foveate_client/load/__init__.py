"""Puts a server under load and measures it.

workload  -> what is sent: requests of one or several kinds, serialised beforehand
driver    -> when it is sent: at a fixed concurrency, or at the times of a Poisson process
recorder  -> what came back: latencies, errors by code, throughput
search    -> the highest rate whose latency stays within an objective
plot      -> the distribution of the latencies as a picture
"""
