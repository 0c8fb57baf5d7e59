"""Recipes: what each stage trains, on what, with which loss. The dial of sizes. One command a stage:

    python -m vldm_mini train autoencoder --data actions --size s       frames to latents           (chapter 03)
    python -m vldm_mini train image       --data actions --size s       theta, eq. (1)              (chapter 03)
    python -m vldm_mini train temporal    --data actions --size s       phi, eq. (2), theta frozen  (chapter 04)
    python -m vldm_mini train decoder     --data driving --size s       temporal layers of the decoder    (chapter 05)
    python -m vldm_mini train prediction  --data driving --size s       phi told 0, 1, 2 frames, eq. (3)  (chapter 06)
    python -m vldm_mini train interpolation --data driving --size s     phi told both ends of a window    (chapter 07)
    python -m vldm_mini train boxes       --data driving --size s       an image LDM told boxes     (chapter 09)
    python -m vldm_mini train classifiers      --data actions                who measures them           (chapter 04)

Data: `driving`, `actions`, or a folder of videos. Stages of one set lie side by side in one folder; each reads what the
earlier ones left there.
"""
import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange

from vldm_mini import machine, weights
from vldm_mini.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    PatchCritic,
    VideoDecoder,
    adaptive_weight,
    hinge_critic_loss,
    hinge_decoder_loss,
)
from vldm_mini.boxes import BOX_CHANNELS, box_map
from vldm_mini.context import context, context_mask, linear_interpolation
from vldm_mini.datasets import driving, video
from vldm_mini.diffusion import Schedule, add_noise, ddim, ddim_times, denoising_error, to_x0
from vldm_mini.evaluation import action_classifiers, driving_classifiers, measures
from vldm_mini.pipeline import PipelineConfig
from vldm_mini.temporal import TemporalLayers, VideoModel, extend, insert
from vldm_mini.training import Objective, Settings, rng, train
from vldm_mini.unet import UNet, UNetConfig, add_input_channels

# MINI: the driving model's schedule is "linear, following Ho et al."; we take it, with v, for every model of ours
SCHEDULE = Schedule.linear()
PREDICTION = "v"
# MINI: diffusion models are kept in 8 bits a weight (weights.packed): films from the same noise agree to 48 dB and more
SHIPPED_IN = torch.int8
LABEL_DROP = 0.1                              # paper, appendix (driving): each label is dropped one time in ten


# ---------------------------------------------------------------------------------------------------------------------
# The dial.

@dataclass(frozen=True)
class Size:
    """Widths, frames and steps of all stages together."""
    pixels: int                               # height of a frame; real video is as wide, driving twice as wide
    frames: int                               # T
    stride: int                               # frames of film between two frames of a clip
    autoencoder: AutoencoderConfig
    unet: UNetConfig
    temporal: dict                            # options of temporal.insert
    stages: dict = field(default_factory=dict)          # stage -> Settings
    width: int = 0                            # of a frame; 0: as wide as high
    drives: int = 0                           # clips of `driving` to train on, 16 key frames each


def _stages(autoencoder, image, temporal, boxes=None, **told):
    found = dict(autoencoder=Settings(*autoencoder, warmup=20), image=Settings(*image), temporal=Settings(*temporal))
    # they go on from trained temporal layers: two thirds of their rate. told: other (steps, batch)
    found |= {stage: Settings(*told.get(stage, temporal[:2]), temporal[2] * 2 / 3)
              for stage in ("prediction", "interpolation")}
    found |= dict(decoder=Settings(autoencoder[0], max(2, autoencoder[1] // 8), 1e-3, warmup=20))
    return found | dict(boxes=Settings(*boxes)) if boxes else found


SIZES = {
    "xs": Size(32, 4, 2, AutoencoderConfig((16, 24)),
               UNetConfig(channels=(16, 32), attention=(False, True), head_channels=16, emb_channels=64),
               dict(ff_mult=1, ff_in=False),
               _stages((20, 8, 2e-3), (20, 8, 2e-3), (20, 2, 2e-3))),
    "s": Size(64, 8, 3, AutoencoderConfig(), UNetConfig(attention=(True, True, True)), dict(ff_mult=2, ff_in=False),
              _stages((600, 32, 1.5e-3), (2600, 32, 2e-3), (3000, 6, 3e-3), prediction=(2000, 6))),
    "m": Size(64, 16, 3, AutoencoderConfig((96, 160), blocks=2), UNetConfig(channels=(128, 192, 256), blocks=2), dict(),
              _stages((8000, 64, 1e-3), (30000, 256, 5e-4), (20000, 32, 5e-4))),
    # the paper's widths, for counting and for clusters: f = 8, and a U-Net like Stable Diffusion's
    "paper": Size(256, 8, 15, AutoencoderConfig((128, 256, 512), blocks=2), UNetConfig(channels=(320, 640, 1280, 1280),
                  attention=(True, True, True, False), blocks=2, head_channels=64, emb_channels=1280), dict(),
                  _stages((100000, 64, 1e-4), (400000, 640, 1e-4), (73000, 640, 1e-4))),
}


# MINI: of `driving` a frame is twice as large: half the batch, no attention at the finest resolution. Key frames follow
# one another
_DRIVING = {
    "xs": (12, _stages((20, 8, 2e-3), (20, 8, 2e-3), (20, 2, 2e-3), (20, 8, 2e-3))),
    "s": (1500, _stages((1100, 16, 1.5e-3), (2200, 16, 2e-3), (1600, 3, 3e-3), (700, 16, 2e-3), prediction=(3200, 4),
                        interpolation=(1800, 4))),
    "m": (8000, _stages((8000, 64, 1e-3), (30000, 256, 5e-4), (20000, 32, 5e-4), (10000, 256, 5e-4))),
    "paper": (80000, _stages((100000, 64, 1e-4), (400000, 640, 1e-4), (73000, 640, 1e-4), (100000, 640, 1e-4)))}
DRIVING = {name: replace(SIZES[name], stride=1, width=2 * SIZES[name].pixels, drives=drives, stages=stages,
                         unet=UNetConfig() if name == "s" else SIZES[name].unet)
           for name, (drives, stages) in _DRIVING.items()}


def dial_at(size, data="actions"):
    """The Size of that name for that data. Raises ValueError for a name that the dial does not have."""
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; choose one of {', '.join(SIZES)}")
    return DRIVING[size] if data == "driving" else SIZES[size]


def settings_for(size, stage, steps=None, seed=0, data="actions"):
    """The Settings of a stage at a size, with another number of steps or seed if given."""
    stages = dial_at(size, data).stages
    if stage not in stages:
        raise ValueError(f"there is no stage {stage!r} for {data}: it knows no boxes; give --data driving")
    settings = replace(stages[stage], seed=seed)
    return replace(settings, steps=steps) if steps else settings


def load_clips(data, dial):
    """-> (clips to train on, clips held out) of `driving`, a set of the catalogue or a folder of videos."""
    if data == "driving":
        drives = ("train", dial.drives), ("held_out", 16)
        return tuple(driving.clips(split, n, height=dial.pixels) for split, n in drives)
    return video.split(video.load(data, size=dial.pixels))


# ---------------------------------------------------------------------------------------------------------------------
# Stage 1: the autoencoder.

KL_WEIGHT, CRITIC_WEIGHT = 2e-4, 0.1          # MINI: the paper gives neither


def train_autoencoder(data="actions", size="s", out="runs/actions-s", steps=None, seed=0, resume=True, start=None):
    """Frames to latents and back: L1 + KL + patch critic, which enters half-way. Saves out/autoencoder.

    start, here and below: a folder with weights of this stage to go on from, in place of random ones.
    """
    dial, settings = dial_at(size, data), settings_for(size, "autoencoder", steps, seed, data)
    folder, (clips, held_out) = Path(out) / "autoencoder", load_clips(data, dial)
    frames = torch.cat([clip.frames for clip in (clips[::4] if data == "driving" else clips)])   # n h w 3, uint8
    torch.manual_seed(seed)
    model = Autoencoder.from_pretrained(start).train() if start else Autoencoder(dial.autoencoder)
    draw_frame = lambda g: video.to_float(frames[int(torch.randint(len(frames), (1,), generator=g))])   # noqa: E731
    record = train(folder, settings, autoencoder_objectives(model.to(machine.device()), draw_frame, settings),
                   resume=resume)
    model.config = unit_variance(model, frames[:: max(1, len(frames) // 512)])
    psnr = reconstruction_psnr(model, held_out or clips)
    model.save_pretrained(folder, card("autoencoder", data, size, record, {"PSNR on held-out frames, dB": psnr}))
    return record


def autoencoder_objectives(model, draw_frame, settings):
    """An autoencoder and its critic as objectives. draw_frame(generator) -> one frame (3 h w) in [-1, 1]."""
    critic, last = PatchCritic().to(machine.device()), {}

    def loss(step, samples):
        draw = [rng(settings.seed, step, sample) for sample in samples]
        x = torch.stack([draw_frame(g) for g in draw]).to(machine.device())
        posterior = model.posterior(x)
        noise = torch.stack([torch.randn(posterior.mean.shape[1:], generator=g) for g in draw]).to(x.device)
        x_hat = model.decoder(posterior.mean + (posterior.log_variance / 2).exp() * noise)
        reconstruction = (x - x_hat).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        total, logs = reconstruction + KL_WEIGHT * kl, dict(reconstruction=reconstruction.item(), kl=kl.item())
        last.update(real=x, fake=x_hat.detach())
        if step >= settings.steps // 2:
            adversarial = hinge_decoder_loss(critic(x_hat))
            pull = adaptive_weight(reconstruction, adversarial, model.decoder.last_layer)
            total = total + CRITIC_WEIGHT * pull * adversarial
        return total, logs

    def critic_loss(step, samples):
        if step < settings.steps // 2:
            return None
        return hinge_critic_loss(critic(last["real"]), critic(last["fake"])), {}
    return [Objective("autoencoder", model, loss, muon=True), Objective("critic", critic, critic_loss, 0.5)]


@torch.no_grad()
def unit_variance(model, frames):
    """The config whose shift and scale give latents mean 0 and variance 1. frames uint8 (n h w 3)."""
    z = torch.cat([model.posterior(video.to_float(part).to(machine.device())).mean for part in frames.split(32)])
    return replace(model.config, shift=float(z.mean()), scale=float(1 / z.std()))


@torch.no_grad()
def reconstruction_psnr(model, clips, every=8):
    """Mean over frames of the PSNR in dB, range 2 for values in [-1, 1]."""
    frames = torch.cat([clip.frames[::every] for clip in clips])
    found = []
    for part in frames.split(32):
        x = video.to_float(part).to(machine.device())
        found.append(measures.psnr(model.decode(model.encode(x)).clamp(-1, 1), x))
    return round(float(torch.cat(found).mean()), 2)


# ---------------------------------------------------------------------------------------------------------------------
# The temporal decoder (section 3.1.1): the decoder learns to look at the frames before and after.

# MINI: an error that changes from frame to frame counts again, beside L1 and the critic of clips. The decoder meets the
# end of the stack most often, but also its middle and key frames
CHANGE_WEIGHT, DECODER_FPS = 2.0, (16 * driving.KEY_FPS, 16 * driving.KEY_FPS, 4 * driving.KEY_FPS, driving.KEY_FPS)
# MINI: latents that a model made differ a little from frame to frame, and no decoder of single frames can know what of
# it is meant. So latents carry noise here, another in each frame, as much of it in a clip as chance will, up to this
DECODER_NOISE = 0.25


def decoder_clips(data, dial, split="train", n=600):
    """Films to decode, uint8 (t h w 3) each. Of `driving` one a drive, at one of DECODER_FPS; else as generated."""
    if data != "driving":
        return [clip.frames[::dial.stride] for clip in load_clips(data, dial)[split != "train"]]
    return [driving.Drive(seed, dial.frames, dial.pixels, DECODER_FPS[i % len(DECODER_FPS)], start=2.0).frames
            for i, seed in enumerate(driving.seeds(split, min(n, dial.drives)))]


def decoder_objectives(decoder, trained, pull_on, critic, films, settings, length):
    """The decoder and its critic as objectives. trained: the module that learns; pull_on: its last weights.

    critic: of clips if its convolutions are 3-D, else of frames.
    """
    fold = "b t c h w -> b c t h w" if critic[0].weight.ndim == 5 else "b t c h w -> (b t) c h w"
    classify, last = lambda x: critic(rearrange(x, fold)), {}                                              # noqa: E731

    def loss(step, samples):
        draw = [rng(settings.seed, step, sample) for sample in samples]
        chosen = [films[int(torch.randint(len(films), (1,), generator=g))] for g in draw]
        starts = [int(torch.randint(len(film) - length + 1, (1,), generator=g)) for film, g in zip(chosen, draw)]
        x = torch.stack([video.to_float(film[at:at + length]) for film, at in zip(chosen, starts)]).to(machine.device())
        with torch.no_grad():
            z = rearrange(decoder.autoencoder.encode(x.flatten(0, 1)), "(b t) c h w -> b t c h w", b=len(x))
            z = torch.stack([film + DECODER_NOISE * torch.rand((), generator=g).to(z) *
                             torch.randn(film.shape, generator=g).to(z) for film, g in zip(z, draw)])
        x_hat = decoder(z)
        error = x - x_hat
        still, change = error.abs().mean(), error.diff(dim=1).abs().mean()
        reconstruction = still + CHANGE_WEIGHT * change
        last.update(real=x, fake=x_hat.detach())
        total, logs = reconstruction, dict(error=still.item(), change=change.item())
        if step >= settings.steps // 4:
            adversarial = hinge_decoder_loss(classify(x_hat))
            total = total + CRITIC_WEIGHT * adaptive_weight(reconstruction, adversarial, pull_on) * adversarial
        return total, logs

    def critic_loss(step, samples):
        return hinge_critic_loss(classify(last["real"]), classify(last["fake"])), {}
    return [Objective("decoder", trained, loss, muon=True), Objective("critic", critic, critic_loss, 0.5)]


def train_decoder(data="actions", size="s", out="runs/actions-s", steps=None, seed=0, resume=True, start=None):
    """Temporal layers of the decoder; encoder and decoder stay as they are. Saves out/decoder."""
    dial, settings = dial_at(size, data), settings_for(size, "decoder", steps, seed, data)
    folder, model = Path(out) / "decoder", Autoencoder.from_pretrained(Path(out) / "autoencoder").to(machine.device())
    model.requires_grad_(False)
    torch.manual_seed(seed)
    # MINI: convolutions over time that also look sideways: what moves is elsewhere in the next frame
    layers = TemporalLayers.from_pretrained(start, model.decoder) if start else \
        insert(model.decoder, attention=None, space=3)
    critic, pull_on = PatchCritic(dims=3).to(machine.device()), list(layers.mixes.values())[-1].layer.conv2.weight
    objectives = decoder_objectives(VideoDecoder(model, layers), layers.train(), pull_on, critic, decoder_clips(data, dial),
                              settings, dial.frames)
    record = train(folder, settings, objectives, resume=resume)
    layers.save_pretrained(folder, card("decoder layers (temporal)", data, size, record, {}), SHIPPED_IN)
    return record


# ---------------------------------------------------------------------------------------------------------------------
# Cached latents: the encoder runs once over the set.

@dataclass(frozen=True)
class Latents:
    """A set as its autoencoder sees it. films: [(t c h w)] in half precision; labels (clips, n) long, or (clips, t, n)
    where they change from frame to frame.

    words: for each label its name and what its classes mean, held-out ones included; fps: of the films; boxes, where
    they are known: of each clip, for each frame, (n, 4).
    """
    films: list
    labels: torch.Tensor
    words: tuple
    fps: float
    boxes: list | None = None

    @property
    def classes(self):
        """The number of classes of each label, which is also its null label."""
        return tuple(len(meanings) for _, meanings in self.words)


@torch.no_grad()
def encode_clips(model, clips):
    """Encode every frame of every clip -> [(t c h w)] in half precision, on the CPU."""
    return [torch.cat([model.encode(video.to_float(part).to(machine.device())).half().cpu()
                       for part in clip.frames.split(64)]) for clip in clips]


def vocabulary(clips):
    """What the labels of clips mean: (("action", ("bend", ...)), ...), a class never seen being its number."""
    words = {}
    for clip in clips:
        for name, value in clip.labels.items():
            words.setdefault(name, {})[value] = str(clip.words.get(name, value))
    return tuple((name, tuple(seen.get(k, str(k)) for k in range(max(seen) + 1))) for name, seen in words.items())


def training_latents(data, dial, out, clips=None):
    """The training clips of a set, or those given, as Latents: encoded once, kept beside the run, by encoder and clips.
    """
    folder = Path(out) / "autoencoder"
    if not (folder / weights.WEIGHTS).is_file():
        raise FileNotFoundError(f"no autoencoder in {out}; first: python -m vldm_mini train autoencoder --data {data}")
    clips, held_out = (clips, []) if clips else load_clips(data, dial)
    made_of = "".join([weights.sha256(folder / weights.WEIGHTS), *(clip.name for clip in clips)])
    key = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    path = Path(out) / "latents" / f"{dial.pixels}-{key}.safetensors"
    if not path.is_file():
        films = encode_clips(Autoencoder.from_pretrained(folder).to(machine.device()), clips)
        tensors = {f"{i:05d}": film for i, film in enumerate(films)}
        weights.save_tensors(path, tensors | (driving_truth(clips) if data == "driving" else {}))
    tensors = weights.load_tensors(path)
    films = [tensors[k] for k in sorted(tensors) if k.isdigit()]
    if data == "driving":
        boxes = [x.split(n.tolist()) for x, n in zip(tensors["boxes"].split(tensors["cars"].sum(1).tolist()),
                                                     tensors["cars"])]
        return Latents(films, tensors["labels"], driving.WORDS, driving.KEY_FPS, boxes)
    labels = torch.stack([video.label_vector(clip) for clip in clips])
    return Latents(films, labels, vocabulary([*clips, *held_out]), clips[0].fps)


def driving_truth(clips):
    """Of every frame of all clips: labels (clips, t, 2), how many boxes (clips, t), and all boxes in a row (n, 4)."""
    boxes = [clip.boxes for clip in clips]
    return dict(labels=torch.stack([clip.labels(some) for clip, some in zip(clips, boxes)]),
                cars=torch.tensor([[len(some) for some in film] for film in boxes]),
                boxes=torch.cat([torch.from_numpy(some).float() for film in boxes for some in film]))


def draw_windows(found, frames, stride, generators):
    """One window a generator -> [(clip, slice of its frames)]. Clips have equal chances whatever their length."""
    windows = []
    for g in generators:
        i = int(torch.randint(len(found.films), (1,), generator=g))
        starts = len(found.films[i]) - video.span(frames, stride) + 1
        if starts < 1:
            raise ValueError(f"a clip of {len(found.films[i])} frames is too short for {frames} frames {stride} apart")
        start = int(torch.randint(starts, (1,), generator=g))
        windows.append((i, slice(start, start + video.span(frames, stride), stride)))
    return windows


def clips_at(found, windows):
    """-> z (b t c h w) float, labels (b, n): of labels that change from frame to frame the mean, rounded."""
    z = torch.stack([found.films[i][part].float() for i, part in windows])
    labels = [found.labels[i] if found.labels[i].ndim == 1 else found.labels[i][part].float().mean(0).round().long()
              for i, part in windows]
    return z.to(machine.device()), torch.stack(labels).to(machine.device())


def boxes_at(found, windows, generators, height, width, p=LABEL_DROP):
    """What the box model is told of the first frames of windows: (b 4 h w); zeros, nothing told, with probability p."""
    maps = torch.stack([box_map(found.boxes[i][part.start], height, width) for i, part in windows])
    told = torch.stack([torch.rand(1, generator=g) >= p for g in generators])
    return (maps * told[:, :, None, None]).to(machine.device())


def drop_labels(labels, classes, generators, p=LABEL_DROP):
    """Each label becomes the null label with probability p, so that guidance and unconditional sampling work."""
    dropped = torch.stack([torch.rand(len(classes), generator=g) for g in generators]).to(labels.device) < p
    return torch.where(dropped, torch.tensor(classes, dtype=torch.long, device=labels.device), labels)


# ---------------------------------------------------------------------------------------------------------------------
# Stages 2 and 3: eq. (1) on frames, eq. (2) on clips. The same loss: a frame is a clip of one.

# MINI: logit-normal tau (Esser et al. 2024), (middle, spread): of a frame, person, place and pose are decided at the
# middle, above and below little is. A clip needs low tau too: an error there that each frame makes for itself shakes
# Where frames are told, how they go on is decided high up
TAU_FRAMES, TAU_CLIPS, TAU_CONTEXT = (0.5, 1.0), (-0.8, 1.5), (0.4, 1.4)


def draw_tau(generators, samples, batch, middle=TAU_FRAMES[0], spread=TAU_FRAMES[1]):
    """One tau a sample, (b,) long: tau = 1000 sigmoid(middle + spread n), n normal.

    MINI: strata. Sample i's n lies in the i-th of `batch` equally likely parts of the normal distribution, so that each
    tau is as likely as before, and every batch has all noise levels: less noise in the gradient.
    """
    u = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) + i for g, i in zip(generators, samples)]) / batch
    tau = SCHEDULE.num_steps * torch.sigmoid(middle + spread * torch.special.ndtri(u))
    return tau.long().clamp(max=SCHEDULE.num_steps - 1)


# MINI: a film may be right in every detail and still flicker as a whole: that error is so small a part of eq. (2) that
# it is learnt last. So it counts again, for as much as all details together (8 x 2 / 16 of an error without a pattern).
# The best answer stays the same: it is the mean of all that could be, for either part
TEMPORAL_DIFFERENCE_WEIGHT, SQUARE = 8.0, 4


def temporal_difference_error(error):
    """How much the error of a clip, averaged over squares of 4x4 insertion_points, changes from frame to frame.

    (b t c h w) -> (b,): the mean square.
    """
    side = min(SQUARE, *error.shape[3:])
    coarse = F.avg_pool2d(rearrange(error, "b t c h w -> (b t) c h w"), side)
    return rearrange(coarse, "(b t) c h w -> b t c h w", b=len(error)).diff(dim=1).square().flatten(1).mean(1)


# MINI: p_S, how often S = 0, 1, 2 frames are given, and how much noise is put on them: neither is in the paper. Three
# clips in four have clean context, the others noise of a tau up to 250 (as its text-to-video interpolation does)
CONTEXT_ODDS, CONTEXT_TAU = (0.2, 0.25, 0.55), 250
# MINI: on a long drive the model is told frames that it made itself, and true ones are all that it has seen. So half of the clips are told frames as it makes them out of noise of a tau up to this
SELF_GENERATED_SHARE, SELF_GENERATED_TAU = 0.5, 500
INTERPOLATION_FPS = 4 * driving.KEY_FPS, 16 * driving.KEY_FPS         # what T to 4T and 4T to 16T make
# MINI: a blend of the ends is off by 0.18 in the first regime, by 0.04 in the second (latents of variance 1): what is
# left to learn there is small, and would be learnt last. Four times the weight
REGIME_WEIGHTS = 0.4, 1.6


def prediction_context(z, windows, generators, model=None, odds=CONTEXT_ODDS):
    """Prediction: c_S of eq. (3), S of the first frames, drawn. z (b t c h w) clean -> what a VideoModel is told.

    model: a VideoModel; some clips are told frames as it makes them.
    """
    size = torch.cat([torch.multinomial(torch.tensor(odds), 1, generator=g) for g in generators])
    own = [float(torch.rand(1, generator=g)) < SELF_GENERATED_SHARE for g in generators]
    if model and any(own):
        z = self_generated_context(model, z, generators, own)
    return dict(context=noisy_context(z, torch.stack([context_mask(z.shape[1], int(n)) for n in size]), generators))


def self_generated_context(model, z, generators, own, first=4):
    """The first frames of those clips that are `own` as the model itself makes them out of noise, in one step."""
    which = torch.tensor(own).nonzero()[:, 0].to(z.device)
    tau = torch.cat([torch.randint(SELF_GENERATED_TAU, (1,), generator=g) for g in generators]).to(z.device)[which]
    eps = torch.stack([torch.randn(z[0, :first].shape, generator=g) for g in generators]).to(z.device)[which]
    noisy = add_noise(SCHEDULE, z[which, :first], eps, tau)
    z = z.clone()
    z[which, :first] = to_x0(SCHEDULE, noisy, model(noisy, tau), tau, PREDICTION).detach().to(z.dtype)
    return z


def interpolation_context(z, windows, generators):
    """Interpolation: c_S of the first and the last frame; the regime is the parity of the film's number."""
    mask = context_mask(z.shape[1], 1, 1).expand(len(z), -1)
    regime = torch.tensor([i % 2 for i, _ in windows], device=z.device)
    return dict(context=noisy_context(z, mask, generators), regime=regime)


def noisy_context(z, mask, generators):
    """c_S with noise augmentation. z (b t c h w), mask (b t) -> (b c+1 t h w)."""
    drawn = torch.cat([torch.randint(-3 * CONTEXT_TAU, CONTEXT_TAU + 1, (1,), generator=g) for g in generators])
    tau = drawn.clamp(min=0)
    keep = torch.where(tau > 0, SCHEDULE.alpha_tau[tau], 1.0).float().to(z.device)
    eps = torch.stack([torch.randn(z.shape[1:], generator=g) for g in generators]).to(z.device)
    return context(z, mask.to(z.device), keep, eps)


def diffusion_loss(model, found, frames, stride, settings, told=None):
    """The loss of training.Objective: eq. (1) if frames is 1, eq. (2) if model is a video model and frames is T.

    told(z, windows, generators) -> {name: what the model is told beside labels}: boxes, or c_S of eq. (3). Told both
    ends (and a regime), it answers as context.anchored.
    """
    def loss(step, samples):
        draw = [rng(settings.seed, step, sample) for sample in samples]
        windows = draw_windows(found, frames, stride, draw)
        z, labels = clips_at(found, windows)
        z = z[:, 0] if frames == 1 else z
        labels = drop_labels(labels, found.classes, draw)
        middle = TAU_FRAMES if frames == 1 else TAU_CONTEXT if told else TAU_CLIPS
        tau = draw_tau(draw, samples, settings.batch, *middle).to(z.device)
        eps = torch.stack([torch.randn(z.shape[1:], generator=g) for g in draw]).to(z.device)
        more = told(z, windows, draw) if told else {}
        error = denoising_error(SCHEDULE, lambda z, tau: model(z, tau, labels=labels, **more), z, tau, eps, PREDICTION)
        error = error - linear_interpolation(error) if "regime" in more else error
        each = error.square().flatten(1).mean(1)
        counts = torch.tensor(REGIME_WEIGHTS).to(each)[more["regime"]] if "regime" in more else 1.0
        total = (counts * (each if frames == 1 else each + TEMPORAL_DIFFERENCE_WEIGHT * temporal_difference_error(error))).mean()
        return total, dict(tau=tau, loss=each.detach())
    return loss


def train_image(data="actions", size="s", out="runs/actions-s", steps=None, seed=0, resume=True, start=None):
    """theta: the image LDM on single frames, eq. (1). Saves out/image."""
    dial, settings = dial_at(size, data), settings_for(size, "image", steps, seed, data)
    folder, found = Path(out) / "image", training_latents(data, dial, out)
    torch.manual_seed(seed)
    config = replace(dial.unet, labels=found.classes, in_channels=dial.autoencoder.latent_channels,
                     out_channels=dial.autoencoder.latent_channels)
    model = (UNet.from_pretrained(start).train() if start else UNet(config)).to(machine.device())
    record = train(folder, settings, [Objective("image", model, diffusion_loss(model, found, 1, 1, settings), muon=True)],
                   strip=strip(model, found, out, frames=1), resume=resume)
    model.save_pretrained(folder, card("image LDM (theta)", data, size, record, {}), SHIPPED_IN)
    return record


def train_temporal(data="actions", size="s", out="runs/actions-s", steps=None, seed=0, resume=True, start=None):
    """phi: temporal layers on clips, eq. (2), theta frozen. Saves out/temporal."""
    dial, settings = dial_at(size, data), settings_for(size, "temporal", steps, seed, data)
    folder, found = Path(out) / "temporal", training_latents(data, dial, out)
    if not (Path(out) / "image" / weights.WEIGHTS).is_file():
        raise FileNotFoundError(f"no image model in {out}; first: python -m vldm_mini train image --data {data}")
    theta = UNet.from_pretrained(Path(out) / "image").to(machine.device()).requires_grad_(False)
    torch.manual_seed(seed)
    layers = TemporalLayers.from_pretrained(start, theta).train() if start else insert(theta, **dial.temporal)
    model = VideoModel(theta, layers)
    loss = diffusion_loss(model, found, dial.frames, dial.stride, settings)
    record = train(folder, settings, [Objective("temporal", layers, loss, muon=True)],
                   watch=lambda: dict(alpha={k: round(v, 4) for k, v in layers.alphas().items()}),
                   strip=strip(model, found, out, frames=dial.frames), resume=resume)
    layers.save_pretrained(folder, card("temporal layers (phi)", data, size, record, {}), SHIPPED_IN)
    config = PipelineConfig(found.words, dial.pixels, dial.width, dial.frames, round(found.fps / dial.stride, 3),
                            temporal_guidance=2.0, temporal_guidance_above=200, eta=1.0)
    weights.write_text(Path(out) / weights.CONFIG, json.dumps(asdict(config), indent=1) + "\n")
    return record


def train_prediction(data="actions", size="s", out="runs/actions-s", steps=None, seed=0, resume=True, start=None):
    """phi that is also told 0, 1 or 2 frames of its clip, eq. (3). Goes on from out/temporal. Saves out/prediction.

    MINI: with S = 0 it makes key frames as before: one phi for sections 3.1 and 3.2.
    """
    dial = dial_at(size, data)
    return _train_with_context("prediction", training_latents(data, dial, out), dial.frames, dial.stride, prediction_context,
                       start or Path(out) / "temporal", data, size, out, steps, seed, resume)


def train_interpolation(data="driving", size="s", out="runs/driving-s", steps=None, seed=0, resume=True, start=None):
    """phi that is told both ends of five frames (section 3.3). Goes on from out/prediction. Saves out/interpolation.

    One phi for T to 4T and 4T to 16T: a binary regime says which. Only where any frame rate can be had: `driving`.
    """
    if data != "driving":
        raise ValueError(f"interpolation learns from frames at 7.5 and 30 a second; {data} has none: --data driving")
    dial = dial_at(size, data)
    clips = [driving.Drive(seed, 5, dial.pixels, fps, start=3 * (seed % 3))
             for seed in driving.seeds("train", dial.drives) for fps in INTERPOLATION_FPS]
    return _train_with_context("interpolation", training_latents(data, dial, out, clips), 5, 1, interpolation_context,
                       start or Path(out) / "prediction", data, size, out, steps, seed, resume, regimes=2)


def _train_with_context(stage, found, frames, stride, told, start, data, size, out, steps, seed, resume, **options):
    """A stage of eq. (3): temporal layers from `start`, with room for c_S, trained with theta frozen."""
    settings, folder = settings_for(size, stage, steps, seed, data), Path(out) / stage
    theta = UNet.from_pretrained(Path(out) / "image").to(machine.device()).requires_grad_(False)
    torch.manual_seed(seed)
    layers = TemporalLayers.from_pretrained(start, theta)
    options |= dict(context_channels=theta.config.in_channels + 1)
    if any(name not in layers.settings["options"] for name in options):
        layers = extend(layers, theta, **options)
    model = VideoModel(theta, layers.train())
    told = partial(told, model=model) if stage == "prediction" else told
    loss = diffusion_loss(model, found, frames, stride, settings, told=told)
    record = train(folder, settings, [Objective(stage, layers, loss, muon=True)],
                   watch=lambda: dict(alpha={k: round(v, 4) for k, v in layers.alphas().items()}), resume=resume)
    layers.save_pretrained(folder, card(f"{stage} layers (phi)", data, size, record, {}), SHIPPED_IN)
    return record


def train_boxes(data="driving", size="s", out="runs/driving-s", steps=None, seed=0, resume=True, start=None):
    """An image LDM that is told where cars are (paper, section 4.1.2). Goes on from out/image. Saves out/boxes."""
    settings = settings_for(size, "boxes", steps, seed, data)
    dial, folder = dial_at(size, data), Path(out) / "boxes"
    found = training_latents(data, dial, out)
    if not (Path(out) / "image" / weights.WEIGHTS).is_file():
        raise FileNotFoundError(f"no image model in {out}; first: python -m vldm_mini train image --data {data}")
    torch.manual_seed(seed)
    model = UNet.from_pretrained(start) if start else add_input_channels(UNet.from_pretrained(Path(out) / "image"), BOX_CHANNELS)
    model = model.train().to(machine.device())
    told = lambda z, windows, draw: dict(concat=boxes_at(found, windows, draw, *z.shape[2:]))           # noqa: E731
    loss = diffusion_loss(model, found, 1, 1, settings, told=told)
    record = train(folder, settings, [Objective("boxes", model, loss, muon=True)], resume=resume)
    model.save_pretrained(folder, card("boxes to image LDM", data, size, record, {}), SHIPPED_IN)
    return record


@torch.no_grad()
def strip(model, found, out, frames, rows=4, steps=10):
    """The recorder's picture: the same noise and labels at every call. One row a label, one column a frame."""
    decoder = Autoencoder.from_pretrained(Path(out) / "autoencoder").to(machine.device())
    generator = torch.Generator().manual_seed(0)
    columns = 8 if frames == 1 else frames
    labels = found.labels[torch.linspace(0, len(found.labels) - 1, rows).long()].to(machine.device())
    labels = labels if labels.ndim == 2 else labels[:, 0]
    noise = torch.randn(rows, columns, *found.films[0].shape[1:], generator=generator).to(machine.device())
    if frames == 1:
        noise, labels = rearrange(noise, "r k c h w -> (r k) c h w"), labels.repeat_interleave(columns, 0)

    @torch.no_grad()
    def picture():
        from PIL import Image
        z = ddim(SCHEDULE, lambda z, tau: model(z, tau, labels=labels), noise, ddim_times(steps), PREDICTION)
        x = decoder.decode(z.reshape(-1, *z.shape[-3:])).clamp(-1, 1)
        x = rearrange((x * 127.5 + 127.5).round().byte().cpu(), "(r k) c h w -> (r h) (k w) c", r=rows)
        return Image.fromarray(x.numpy())
    return picture


# ---------------------------------------------------------------------------------------------------------------------
# The classifiers: no part of the model, made before it from real clips alone.

def train_classifiers(data="actions", size="s", out="runs/actions-s", steps=None, seed=0, resume=True, start=None):
    """Networks that measure the others: of `actions` action_classifiers.ActionClassifiers, of `driving` driving_classifiers.SceneClassifier and CarFinder.

    Saves out/classifiers. One size, and minutes long; of `actions`, a run that was stopped starts again. Raises ValueError
    for another set.
    """
    if data not in ("actions", "driving"):
        raise ValueError(f"the classifiers know the actions and persons of `actions`, and `driving`, not {data!r}: "
                         "give --data actions or --data driving")
    if start:
        raise ValueError("the classifiers are always trained from nothing: leave --start out")
    if data == "driving":
        return driving_classifiers.train_classifiers(Path(out) / "classifiers", seed, steps, resume=resume)
    from tqdm.auto import tqdm

    with tqdm(desc="classifiers", total=steps or action_classifiers.CLASSIFIER_STEPS, mininterval=0.5) as bar:
        def progress(step, loss):
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
        return action_classifiers.train_classifiers(Path(out) / "classifiers", seed, steps=steps or action_classifiers.CLASSIFIER_STEPS, progress=progress)


# ---------------------------------------------------------------------------------------------------------------------

def card(what, data, size, record, metrics):
    """The model card: what it is, data, licence, recipe, minutes, hardware, figures."""
    where, row = record.where, record.rows[-1] if record.rows else {}
    figures = {**{f"training loss, {k}": v for k, v in row.get("losses", {}).items()}, **metrics}
    entry = video.catalogue().get(data)
    terms = f"{entry.title}. {entry.terms} Cite: {'; '.join(entry.cite)}" if entry else \
        "rendered by this package" if data == "driving" else "the reader's own clips"
    lines = [f"# vldm_mini: {what}, {data}, size {size}", "",
             f"Trained on: {data} ({terms})", "",
             "Licence of these weights: Apache-2.0 where the data's terms allow it; "
             "trained on `actions` they are for research and teaching, as the data is.", "",
             f"Recipe: `python -m vldm_mini train {what.split()[0]} --data {data} --size {size}`, "
             f"seed {record.settings.get('seed')}, {record.settings.get('steps')} steps of "
             f"batch {record.settings.get('batch')}, {record.settings.get('precision')}.", "",
             f"Took {record.minutes:.1f} minutes on {where.get('threads')} threads of {where.get('device')} "
             f"({where.get('processor')}), torch {where.get('torch')}, commit {where.get('commit')}.", "",
             *[f"- {name}: {value}" for name, value in figures.items()], ""]
    return "\n".join(lines)


STAGES = {"autoencoder": train_autoencoder, "decoder": train_decoder, "image": train_image, "temporal": train_temporal,
          "prediction": train_prediction, "interpolation": train_interpolation, "boxes": train_boxes,
          "classifiers": train_classifiers}
