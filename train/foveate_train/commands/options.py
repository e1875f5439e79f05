"""Options that the subcommands of `foveate train` share."""

import argparse

import torch

from foveate_train.errors import SettingsError
from foveate_train.training import default_device


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add --device and --threads, which `use_machine` reads."""
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or cuda:N; default: a GPU if there is one"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: torch's choice")


def use_machine(options: argparse.Namespace) -> torch.device:
    """Set the threads and return the device that the options name.

    Raises:
        SettingsError: there are fewer than 1 threads, or there is no such device.
    """
    if options.threads is not None:
        if options.threads < 1:
            raise SettingsError(f"threads {options.threads} is below 1")
        torch.set_num_threads(options.threads)
    if options.device is None:
        return default_device()
    try:
        device = torch.device(options.device)
        torch.zeros(1, device=device)
    # Which it is depends on whether the name, the driver or the build is at fault.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise SettingsError(f"device {options.device!r} cannot be used: {reason}") from error
    return device
