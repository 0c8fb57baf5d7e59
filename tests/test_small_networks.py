"""The small trained networks of chapters 02 to 04, and the loops that train them."""

import pytest
import torch

from vldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from vldm_mini.teaching import small_networks as small
from vldm_mini.temporal import VideoModel, insert
from vldm_mini.unet import UNet, UNetConfig


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny_unet(channels=3):
    torch.manual_seed(0)
    return UNet(UNetConfig(channels, channels, (16,), (True,), emb_channels=32))


@pytest.mark.parametrize("name", small.NETWORKS)
def test_every_network_is_stored_with_its_record(name):
    record = small.record(name)
    assert record["processor_seconds"] > 0 and record["step"][-1] == record["settings"]["steps"]
    network = small.video_model(name) if name == "temporal" else small.load(name)
    assert not network.training and all(p.isfinite().all() for p in network.parameters())
    losses = record.get("loss") or record["reconstruction"]
    assert losses[-1] < losses[0]


def test_the_loops_give_the_same_weights_for_the_same_seed():
    x = noise(6, 3, 32, 64)

    def denoiser(seed):
        net = tiny_unet()
        return small.fit_denoiser(net, x, steps=2, batch=2, seed=seed), net.state_dict()

    def autoencoder(seed):
        torch.manual_seed(0)
        model = Autoencoder(AutoencoderConfig((16,)))
        rows = small.fit_autoencoder(model, x, 2, critic_weight=0.1, batch=2, seed=seed)
        return rows, model.state_dict()

    for fit in (denoiser, autoencoder):
        (one, a), (again, b), (other, _) = fit(0), fit(0), fit(1)
        assert one == again and one != other
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_only_temporal_layers_learn_from_clips():
    theta = tiny_unet(4)
    torch.nn.init.normal_(theta.conv_out.weight)    # fresh ones end in zeros: no gradient
    before = {name: p.clone() for name, p in theta.state_dict().items()}
    model = VideoModel(theta, insert(theta))
    losses = small.fit_video(model, noise(4, 3, 4, 4, 8), steps=2, batch=2)
    assert len(losses) == 2
    assert all(torch.equal(p, before[name]) for name, p in theta.state_dict().items())
    ends = [p for name, p in model.layers.named_parameters() if name.endswith("to_out.weight")]
    assert ends and all(p.abs().sum() > 0 for p in ends)         # they start at zero


def test_the_nearest_frame_and_its_distance():
    bank = torch.zeros(3, 3, 2, 2)
    bank[1] += 1
    distance, number = small.nearest(torch.full((1, 3, 2, 2), 0.8), bank)
    assert float(distance) == pytest.approx(0.2) and int(number) == 1


def test_a_perfect_denoiser_has_no_loss_at_any_level():
    x = noise(4, 3, 2, 2)
    schedule = tiny_unet().schedule

    def denoise(z, tau):
        alpha_tau, sigma_tau = schedule.at(tau, z)
        return (alpha_tau * z - x) / sigma_tau                                     # v, x known

    denoise.prediction = "v"
    assert small.loss_by_level(schedule, denoise, x).max() < 1e-8
