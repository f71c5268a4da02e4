"""The moving average against torch's own, and its closed formula."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from revhrnet_hf.training.averaging import MovingAverage


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    network[:2].requires_grad_(False).eval()  # what is frozen
    return network


def train_a_little(network):
    network(torch.randn(2, 3, 5, 5)).square().mean().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    network.zero_grad()


def test_same_as_torchs(network):
    """Weights and statistics to the bit, at each update; of batches the number, not torch's average of whole numbers."""
    decay = 0.3
    ours = MovingAverage(network, decay, torch.device("cpu"))
    theirs = AveragedModel(
        network,
        multi_avg_fn=lambda averaged, current, count: get_ema_multi_avg_fn(min(decay, (2 + count) / (11 + count)))(
            averaged, current, count
        ),
        use_buffers=True,
    )
    frozen = network[0].weight.clone()
    for updates in range(1, 6):
        train_a_little(network)
        before = theirs.module[2].weight.clone()
        for average in (ours, theirs):
            average.update_parameters(network)
        if updates > 1:
            kept = min(decay, (1 + updates) / (10 + updates))
            expected = kept * before + (1 - kept) * network[2].weight
            torch.testing.assert_close(ours.module[2].weight, expected)
        state = ours.state_dict()
        for name, tensor in theirs.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(state[name], tensor), name
        assert not torch.equal(ours.module[3].running_var, network[3].running_var) or updates == 1
        assert ours.module[3].num_batches_tracked == updates
        assert ours.module[1].num_batches_tracked == 0
    assert torch.equal(ours.module[0].weight, frozen)


def test_goes_on_from_its_state(network):
    whole = MovingAverage(network, 0.9, torch.device("cpu"))
    for _ in range(3):
        train_a_little(network)
        whole.update_parameters(network)
    resumed = MovingAverage(network, 0.9, torch.device("cpu"))
    resumed.load_state_dict(whole.state_dict())
    train_a_little(network)
    for average in (whole, resumed):
        average.update_parameters(network)
    found = resumed.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.state_dict().items())


def test_device_is_not_asked(network):
    """A copy on the meta device holds no value that could be read."""
    average = MovingAverage(network, 0.9, torch.device("meta"))
    for _ in range(2):
        average.update_parameters(network.to("meta"))
    assert average.n_averaged == 2
