"""Errors that a user meets are one line."""

import pytest
import torch

from tasks.__main__ import _short_errors


def allocate():
    torch.empty(1 << 60, dtype=torch.uint8)


def fill():
    raise MemoryError


def compute():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation.")


@pytest.mark.parametrize("work", [allocate, fill, compute])
def test_no_memory_is_one_line_with_the_remedy(work, capsys):
    with pytest.raises(SystemExit), _short_errors():
        work()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory") and "batch_size" in line


def test_other_errors_of_torch_have_their_traceback():
    with pytest.raises(RuntimeError, match="shape"), _short_errors():
        torch.zeros(2).view(3)
