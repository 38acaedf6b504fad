"""The user's own code: it runs with seeded random numbers, and what it raises is told in one line that names it."""

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from batchnorm.errors import ArgumentError
from batchnorm.models.preserve import held_numbers
from batchnorm.outputs import told
from batchnorm.study.data import DataError


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Seed the global random numbers of torch, NumPy and Python for a block, and bring them back afterwards."""
    with held_numbers(nn.Module()):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield


@contextmanager
def blaming(option: str, name: str, failing: str) -> Generator[None]:
    """Raise whatever a block raises as a `DataError` that names the user's code.

    Args:
        option: Of the command line, "--model" for instance.
        name: `module:factory`.
        failing: What has gone wrong, in words: "failed in training", for instance.

    Raises:
        DataError: in one line, for every exception and for sys.exit; lines that name the option already stay.
    """
    try:
        yield
    except DataError:
        raise
    except (Exception, SystemExit) as error:  # of whatever kind the user's code brings about
        if isinstance(error, ArgumentError) and str(error).startswith(f"`{option}"):
            raise
        raise DataError(f"`{option} {name}` {failing}: {told(error)}") from None
