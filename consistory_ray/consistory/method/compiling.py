"""What compiled graphs (``torch.compile``) need to be told of the method's tensors."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import AbstractContextManager

from torch import Tensor

from consistory_ray.errors import InputError, Problem


def varying(tensor: Tensor, dim: int) -> Tensor:
    """Tell compilers that a size differs from call to call, so that they make one graph for all of them.

    Does nothing in a process in which nobody compiles.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and tensor.shape[dim] > 1:
        dynamo.maybe_mark_dynamic(tensor, dim)
    return tensor


MOST_GRAPHS = 128
"""Of one kind of block: one for each thing that its layers may have to do, for each size of picture and batch."""


def many_graphs() -> AbstractContextManager[None]:
    """Around calls that run compiled: torch's default is to give up after eight graphs of one function."""
    import torch._dynamo  # a second; only who compiles pays for it

    config = torch._dynamo.config
    patched: AbstractContextManager[None] = config.patch(cache_size_limit=max(MOST_GRAPHS, config.cache_size_limit))
    return patched


def check_compiler(backend: str) -> None:
    """Refuse a machine on which graphs could not be compiled, before minutes have passed.

    Raises:
        InputError: the backend writes C++ and there is no compiler for it.
    """
    names = (os.environ.get("CXX"), os.environ.get("CC"), "g++", "clang++", "c++", "gcc", "cc")
    if backend == "inductor" and not any(shutil.which(name) for name in names if name):
        fix = "install g++, or do not compile: the project's own images have no compiler"
        raise InputError("the network cannot be compiled", [Problem("compile", "no C++ compiler", fix)])
