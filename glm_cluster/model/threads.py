"""How torch's CPU threads behave. Imports no torch, because one of the settings must come before it."""

import os


def prepare_threads() -> None:
    """Let OpenMP threads sleep at barriers instead of spinning. Call before torch is imported.

    On a host shared with anything else spinning is ruinous: two engines on two cores made 0.1 tokens/s each with
    libgomp's default and 10 with this.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def share_cores(num_sharers: int) -> None:
    """Give this process its share of the host's cores when `num_sharers` ranks run on it."""
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_sharers))
