"""CUDA without a GPU: fake tensors on the device `cuda`, on which torch decides dtypes, sizes and autocast as on a real one.

The tables of autocast are part of every build of torch that knows CUDA; a fake tensor has a device, a dtype and a shape, but no
data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors and modules that are made here lie on a GPU that does not exist."""
    if not torch.backends.cuda.is_built():
        pytest.skip("this torch is built without CUDA, so it has no table of CUDA's autocast")
    # What autocast asks before it lets itself be switched on; nothing else takes the GPU for a real one.
    no_autocast = mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    bf16 = mock.patch("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    with no_autocast, bf16, FakeTensorMode(), torch.device("cuda"):
        yield
