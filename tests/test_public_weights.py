"""Public temporal weights of diffusers' classes become ours, and ours become theirs again."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers  # noqa: E402 - after the check that it is there

from tests.test_diffusers_backbone import (  # noqa: E402
    TEXT,
    B,
    T,
    frame_by_frame,
    random_weights,
    run,
    tiny_video_unet,
)
from vldm_mini.stable_diffusion import (  # noqa: E402
    from_spatio_temporal,
    from_temporal_decoder,
    insert_motion,
    motion_adapter,
    to_spatio_temporal,
    to_temporal_decoder,
)
from vldm_mini.temporal import VideoModel, insert  # noqa: E402


def close(got, want, tolerance=1e-5):
    return (got - want).abs().max() <= tolerance * want.abs().max()


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(B, T, 4, 8, 8, generator=generator), torch.tensor([20, 700]),
            torch.randn(B, 5, TEXT, generator=generator))


# -- Stable Video Diffusion's U-Net ---------------------------------------------------------------


@torch.no_grad()
def test_a_spatio_temporal_unet_comes_back_from_our_layers_as_the_same_function(inputs):
    z, tau, text = inputs
    ids = (6, 127, 0.5)
    theirs = tiny_video_unet()
    want = theirs(z, tau, text, torch.tensor([ids] * B)).sample
    back = to_spatio_temporal(*from_spatio_temporal(theirs, ids))
    # the ids are in a bias now: any others give the same
    assert close(back(z, tau, text, torch.tensor([(1, 2, 0.0)] * B)).sample, want)
    moved = ("add_embedding", "time_embedding.linear_2.bias")
    for key, value in theirs.state_dict().items():
        if not key.startswith(moved):
            assert torch.equal(back.state_dict()[key], value), key


def test_layers_that_a_spatio_temporal_unet_has_no_counterpart_of_are_refused():
    backbone, layers = from_spatio_temporal(tiny_video_unet(), (6, 127, 0.5))
    fewer = insert(backbone, where=[next(iter(layers.mixes)).replace("-", ".")])
    with pytest.raises(ValueError, match="where=None"):
        to_spatio_temporal(backbone, fewer)


# -- Stable Video Diffusion's decoder -------------------------------------------------------------


def video_decoder(layers=2):
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 64),
        layers_per_block=layers).eval()
    return random_weights(model.parameters(), model, 0.05)


@torch.no_grad()
def test_the_temporal_decoder_with_our_layers_is_the_same_function_and_comes_back(inputs):
    theirs, z = video_decoder(), inputs[0]
    want = theirs.decode(z.flatten(0, 1) / theirs.config.scaling_factor, num_frames=T).sample
    ours = from_temporal_decoder(theirs)
    assert close(ours(z).flatten(0, 1), want)
    back = to_temporal_decoder(ours).state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(back[key], value), key


@torch.no_grad()
def test_at_alpha_one_the_temporal_decoder_decodes_each_frame_alone(inputs):
    ours, z = from_temporal_decoder(video_decoder()), inputs[0]
    ours.layers.set_alpha(1.0)
    ours.last = None
    assert torch.equal(ours(z)[:, :1], ours(z[:, :1]))


def test_a_decoder_of_another_class_or_depth_is_refused_by_name():
    with pytest.raises(ValueError, match="AutoencoderKLTemporalDecoder, not a Linear"):
        from_temporal_decoder(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="layers_per_block is 1"):
        from_temporal_decoder(video_decoder(layers=1))


# -- AnimateDiff's motion modules -----------------------------------------------------------------


def image_unet(widths=(32, 64)):
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=widths,
        layers_per_block=1, cross_attention_dim=TEXT, attention_head_dim=2).eval()


def adapter(widths=(32, 64), **options):
    torch.manual_seed(0)
    made = diffusers.MotionAdapter(
        block_out_channels=widths, motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_norm_num_groups=32, motion_max_seq_length=8, **options).eval()
    return random_weights(made.parameters(), made)


@torch.no_grad()
@pytest.mark.parametrize("middle", [True, False])
def test_motion_modules_in_our_model_are_the_unet_motion_model(inputs, middle):
    z, tau, text = inputs
    unet, motion = image_unet(), adapter(use_motion_mid_block=middle)
    theirs = diffusers.UNetMotionModel.from_unet2d(unet, motion).eval()
    fold = text.repeat_interleave(T, 0)
    want = theirs(z.transpose(1, 2), tau, fold).sample.transpose(1, 2)
    alone = frame_by_frame(unet, z, tau, text)
    layers = insert_motion(unet, motion)
    model = VideoModel(unet, layers)
    assert close(run(model, z, tau, text), want)
    assert not close(alone, want, 0.01)
    layers.set_alpha(1.0)
    assert close(run(model, z, tau, text), alone, 1e-6)


def test_motion_modules_come_back_as_an_adapter(inputs):
    unet, motion = image_unet(), adapter()
    back = motion_adapter(insert_motion(unet, motion), unet)
    assert back.config.motion_max_seq_length == 8
    for key, value in motion.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key


def test_an_adapter_of_another_model_and_a_clip_that_is_too_long_are_refused(inputs):
    z, tau, text = inputs
    with pytest.raises(ValueError, match="made for another model"):
        insert_motion(image_unet((32, 32)), adapter())
    unet = image_unet()
    model = VideoModel(unet, insert_motion(unet, adapter()))
    with pytest.raises(ValueError, match="sample fewer frames"):
        run(model, z.repeat(1, 3, 1, 1, 1), tau, text)
