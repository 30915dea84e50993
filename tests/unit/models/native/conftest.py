import ctypes

import pytest
import torch

from recurra.models.native import library

CAPABILITY = torch.backends.cpu.get_cpu_capability()
RUNNABLE = {"AVX512": ["x86-64-v4", "x86-64-v3"], "AVX2": ["x86-64-v3"]}.get(CAPABILITY, [""])
"""Instruction sets that this CPU has."""


@pytest.fixture(params=RUNNABLE, scope="module")
def instruction_set(request):
    """The kernels as each CPU that we build for would run them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(library.LEVELS, CAPABILITY, request.param)
        forget()
        yield request.param
    forget()


@pytest.fixture(params=range(3), ids=["alone", "dots", "tiles"])
def extensions(request):
    """Number of the highest instructions beyond the set that products may use, as `Extension` in extensions.h."""
    limit = library.function("recurra_limit_extensions")
    limit(ctypes.c_int64(request.param))
    yield request.param
    limit(ctypes.c_int64(2))


def forget():
    library.kernels.cache_clear()
    library.function.cache_clear()
