"""Several processes that train one network, as torchrun starts them.

Outside torchrun every function answers as for a single process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed


@contextmanager
def group() -> Iterator[None]:
    """Join the processes that torchrun started, if it did, for the time of the block.

    NCCL joins GPUs, each process taking the one of its LOCAL_RANK; gloo joins
    processors.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def world() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0; process 0 reports and writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def total(value: torch.Tensor) -> torch.Tensor:
    """Return the sum of a value over all processes."""
    if distributed.is_initialized():
        distributed.all_reduce(value)
    return value


def any_wants(flag: bool) -> bool:
    """Return whether the flag is set in any process, so that all of them stop at one step."""
    if not distributed.is_initialized():
        return flag
    vote = torch.tensor(int(flag))
    if distributed.get_backend() == "nccl":
        vote = vote.cuda()
    return bool(total(vote))
