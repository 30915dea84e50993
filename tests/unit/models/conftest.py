import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests share the machine; small models are fastest on one thread."""
    torch.set_num_threads(1)
