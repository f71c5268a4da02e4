import pytest
import timm
import torch
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file of timm's keys: the tests' stand-in for pretrained weights."""
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path
