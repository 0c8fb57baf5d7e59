"""Our temporal layers in diffusers' image U-Net: nothing changes until they are trained, then the
frames see one another."""

import pytest
import torch

from vldm_mini.temporal import VideoModel, insert, insertion_points, temporal_parameters

pytest.importorskip("diffusers")
B, T, TEXT = 2, 3, 16


def tiny_unet(seed=0):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=TEXT,
        attention_head_dim=2,
    ).eval()


def tiny_video_unet(seed=0):
    from diffusers import UNetSpatioTemporalConditionModel

    torch.manual_seed(seed)
    unet = UNetSpatioTemporalConditionModel(
        sample_size=8,
        in_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=TEXT,
        num_attention_heads=(1, 2),
        transformer_layers_per_block=2,
    ).eval()
    return random_weights(unet.parameters(), unet)


@torch.no_grad()
def random_weights(parameters, module=None, size=0.1):
    generator = torch.Generator().manual_seed(5)
    for p in parameters:
        p += size * torch.randn(p.shape, generator=generator)
    return module


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    z, text = (
        torch.randn(B, T, 4, 8, 8, generator=generator),
        torch.randn(B, 5, TEXT, generator=generator),
    )
    return z, torch.tensor([20, 700]), text


@pytest.fixture(scope="module")
def trained():
    """U-Net with temporal layers whose weights are random, as if after training."""
    unet = tiny_unet()
    layers = insert(unet, text_channels=TEXT)
    random_weights(temporal_parameters(layers))
    return VideoModel(unet, layers).eval()


@torch.no_grad()
def run(model, z, tau, text, **options):
    return model(z, tau, encoder_hidden_states=text, **options)


@torch.no_grad()
def frame_by_frame(unet, z, tau, text):
    fold = lambda x: x.repeat_interleave(z.shape[1], 0)
    return unet(z.flatten(0, 1), fold(tau), fold(text)).sample.unflatten(0, z.shape[:2])


def test_fresh_layers_change_nothing_at_all_and_rename_nothing(inputs):
    unet = tiny_unet()
    before, keys = frame_by_frame(unet, *inputs), list(unet.state_dict())
    layers = insert(unet, text_channels=TEXT)
    assert torch.equal(run(VideoModel(unet, layers), *inputs), before)
    assert torch.equal(frame_by_frame(unet, *inputs), before)  # the image model is still there
    assert list(unet.state_dict()) == keys
    assert {id(p) for p in unet.parameters()}.isdisjoint(id(p) for p in temporal_parameters(layers))


def test_every_residual_block_and_every_transformer_block_is_followed():
    found = [
        (point.kind, point.channels)
        for _, point in insertion_points(tiny_unet(), text_channels=TEXT)
    ]
    assert [kind for kind, _ in found].count("conv") == 2 + 2 + 4  # down, middle, up
    assert [kind for kind, _ in found].count("attention") == 1 + 1 + 2


def test_alpha_one_is_the_image_model_exactly_after_training(trained, inputs):
    want = frame_by_frame(trained.backbone, *inputs)
    assert not torch.allclose(run(trained, *inputs), want, atol=1e-3)
    trained.layers.set_alpha(1.0)
    try:
        assert torch.equal(run(trained, *inputs), want)
    finally:
        trained.layers.set_alpha(None)
    assert torch.equal(run(trained, *inputs, image=True), want)


def test_a_changed_frame_changes_the_others_and_in_image_mode_does_not(trained, inputs):
    z, tau, text = inputs
    other = z.clone()
    other[:, 1] += 1
    change = (run(trained, other, tau, text) - run(trained, z, tau, text)).abs().amax((0, 2, 3, 4))
    assert (change > 1e-3).all()
    alone = run(trained, other, tau, text, image=True) - run(trained, z, tau, text, image=True)
    assert alone.abs().amax((0, 2, 3, 4)).gt(0).tolist() == [False, True, False]


def test_a_clip_does_not_depend_on_its_neighbour_in_the_batch(trained, inputs):
    z, tau, text = inputs
    other, words, late = z.clone(), text.clone(), tau.clone()
    other[1], words[1], late[1] = z[1].flip(0) + 1, -text[1], 3
    want, got = run(trained, z, tau, text), run(trained, other, late, words)
    assert torch.allclose(got[0], want[0], atol=1e-5) and not torch.allclose(
        got[1], want[1], atol=1e-2
    )


@pytest.mark.parametrize("t", [1, 7, 40])
def test_any_number_of_frames_runs(trained, t):
    z = torch.randn(1, t, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    out = run(trained, z, torch.tensor([500]), torch.zeros(1, 5, TEXT))
    assert out.shape == z.shape and out.isfinite().all()


def test_every_temporal_weight_has_a_gradient_within_two_steps_and_the_backbone_stays(inputs):
    unet = tiny_unet()
    unet.requires_grad_(False)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    layers = insert(unet, text_channels=TEXT)
    model, got = VideoModel(unet, layers), set()
    optimizer = torch.optim.SGD(temporal_parameters(layers), lr=1.0)
    for step in range(2):
        optimizer.zero_grad()
        z, tau, text = inputs
        (model(z, tau, encoder_hidden_states=text) - z.roll(step + 1, 1)).square().mean().backward()
        got |= {
            name for name, p in layers.named_parameters() if p.grad is not None and p.grad.any()
        }
        optimizer.step()
    assert got == {name for name, _ in layers.named_parameters()}
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())


# -- diffusers' own video U-Net, taken apart ---------------------------------------------


def test_a_spatio_temporal_unet_taken_apart_is_the_same_function(inputs):
    from vldm_mini.stable_diffusion import from_spatio_temporal

    z, tau, text = inputs  # two clips, two taus, two texts
    theirs, ids = tiny_video_unet(), (6, 127, 0.5)
    backbone, layers = from_spatio_temporal(theirs, ids)
    with torch.no_grad():
        want = theirs(z, tau, text, torch.tensor([ids] * B)).sample
    got = run(VideoModel(backbone, layers), z, tau, text)
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    layers.set_alpha(1.0)
    assert (
        run(VideoModel(backbone, layers), z, tau, text) - want
    ).abs().max() > 0.01 * want.abs().max()


def test_taking_apart_asks_for_what_it_needs():
    from vldm_mini.stable_diffusion import from_spatio_temporal

    unet = tiny_video_unet()
    with pytest.raises(ValueError, match="added_time_ids"):
        from_spatio_temporal(unet)
    with pytest.raises(ValueError, match="UNetSpatioTemporalConditionModel"):
        from_spatio_temporal(tiny_unet())
    torch.nn.init.zeros_(unet.add_embedding.linear_2.weight)
    torch.nn.init.zeros_(unet.add_embedding.linear_2.bias)
    from_spatio_temporal(unet)


# -- the paper's sizes ---------------------------------------------


@pytest.mark.parametrize(
    "text, heads, linear, count",
    [(1024, (5, 10, 20, 20), True, 656_076_838), (768, 8, False, 649_687_078)],
)
def test_at_stable_diffusions_size_the_temporal_layers_have_the_papers_parameters(
    text, heads, linear, count
):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=text, attention_head_dim=heads, use_linear_projection=linear
        )
        layers = insert(unet, text_channels=text)
    assert sum(p.numel() for p in temporal_parameters(layers)) == count
    kinds = [point.kind for _, point in insertion_points(unet, text_channels=text)]
    assert (kinds.count("conv"), kinds.count("attention")) == (22, 16)
    widths = {
        point.channels: point.heads
        for _, point in insertion_points(unet)
        if point.kind == "attention"
    }
    assert widths == ({320: 5, 640: 10, 1280: 20} if text == 1024 else {320: 8, 640: 8, 1280: 8})


# -- what users of diffusers do with a U-Net -------------------------------------------------------


def gradients(unet, inputs):
    """{name: gradient} of theta and phi, of a loss over two calls with other clips."""
    layers = insert(unet, text_channels=TEXT)
    random_weights(temporal_parameters(layers))
    model = VideoModel(unet, layers).train()
    z, tau, text = inputs
    first = model(z, tau, encoder_hidden_states=text)
    second = model(
        z[:, :2].flip(0), tau, encoder_hidden_states=-text, positions=torch.tensor([3, 9])
    )
    (first.square().mean() + second.square().mean()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_gradient_checkpointing_of_diffusers_gives_the_same_gradients(inputs):
    want = gradients(tiny_unet(), inputs)
    unet = tiny_unet()
    unet.enable_gradient_checkpointing()
    got = gradients(unet, inputs)
    assert want.keys() == got.keys() and len(want) > 200
    assert all(torch.equal(got[name], want[name]) for name in want if want[name] is not None)


@torch.no_grad()
def test_controlnet_residuals_given_as_a_tuple_reach_each_frame_of_its_own_clip(trained, inputs):
    z, tau, text = inputs
    unet = trained.backbone
    frames = dict(encoder_hidden_states=text.repeat_interleave(T, 0))
    shapes = [(32, 8), (32, 8), (32, 4), (64, 4)]
    generator = torch.Generator().manual_seed(3)
    down = [torch.randn(B, T, c, s, s, generator=generator) for c, s in shapes]
    middle = torch.randn(B * T, 64, 4, 4, generator=generator)
    want = unet(
        z.flatten(0, 1),
        tau.repeat_interleave(T),
        **frames,
        down_block_additional_residuals=tuple(x.flatten(0, 1) for x in down),
        mid_block_additional_residual=middle,
    ).sample.unflatten(0, (B, T))
    got = run(
        trained,
        z,
        tau,
        text,
        image=True,
        down_block_additional_residuals=tuple(down),
        mid_block_additional_residual=middle,
    )
    assert torch.equal(got, want)
    assert not torch.equal(run(trained, z, tau, text, image=True), want)


@torch.no_grad()
def test_added_conditions_in_a_dict_are_those_of_their_own_clip(inputs):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=TEXT,
        attention_head_dim=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 10,
    ).eval()
    z, tau, text = inputs
    added = dict(
        text_embeds=torch.randn(B, 10, generator=torch.Generator().manual_seed(4)),
        time_ids=torch.arange(B * 6).view(B, 6),
    )
    model = VideoModel(unet, insert(unet, text_channels=TEXT))
    got = run(model, z, tau, text, added_cond_kwargs=added)
    for i in range(B):
        for t in range(T):
            own = {name: value[i : i + 1] for name, value in added.items()}
            want = unet(
                z[i, t : t + 1], tau[i : i + 1], text[i : i + 1], added_cond_kwargs=own
            ).sample
            assert torch.allclose(got[i, t], want[0], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_unet_in_another_number_format_takes_layers_of_that_format(dtype, inputs):
    unet = tiny_unet().to(dtype)
    layers = insert(unet, text_channels=TEXT)
    z, tau, text = inputs
    model = VideoModel(unet, layers).eval()
    fresh = run(model, z.to(dtype), tau, text.to(dtype))
    assert fresh.dtype == dtype
    assert torch.equal(fresh, run(model, z.to(dtype), tau, text.to(dtype), image=True))
    random_weights(temporal_parameters(layers), size=0.02)
    out = run(model, z.to(dtype), tau, text.to(dtype))
    assert out.isfinite().all() and not torch.equal(out, fresh)


def test_layers_of_a_unet_with_a_lora_have_the_names_of_the_plain_one(inputs):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["to_q", "to_v"])
    names = list(insert(tiny_unet()).mixes)
    assert list(insert(peft.get_peft_model(tiny_unet(), config)).mixes) == names
    unet = tiny_unet()
    unet.add_adapter(config)
    assert list(insert(unet).mixes) == names


def test_the_schedule_and_the_prediction_of_a_diffusers_unet_are_given(inputs):
    from vldm_mini.diffusion import Schedule

    unet = tiny_unet()
    schedule = Schedule.scaled_linear()
    layers = insert(unet)
    model = VideoModel(unet, layers, schedule=schedule, prediction="eps")
    assert model.schedule is schedule and model.prediction == "eps"
    assert VideoModel(unet, layers).schedule is None and VideoModel(unet, layers).prediction is None
