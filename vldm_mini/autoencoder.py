"""The autoencoder: frames to latents and back, and the patch critic that keeps decoding sharp.

Paper: section 2 (LDM, after Rombach et al. 2022). Encoder and decoder take single frames,
`b c h w`; the temporal decoder of section 3.1.1 is the same decoder with temporal layers inserted.
Chapter 03 trains the autoencoder, chapter 05 the temporal decoder.
"""
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .blocks import ChannelLayerNorm, Downsample, ResBlock, Upsample, group_norm
from .context import tiles
from .temporal import TemporalLayers, VideoModel
from .weights import Pretrained


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder, and the mean and scale of its latents.

    The downsampling factor is f = patch * 2^(len(channels) - 1). Latents are
    z = (mean - shift) * scale, with mean 0 and variance 1 over the training frames.
    """
    channels: tuple = (64, 96)           # one width a resolution, finest first
    latent_channels: int = 4
    blocks: int = 1                      # residual blocks a resolution
    patch: int = 2                       # MINI: patch x patch pixels become channels: half the cost
    scale: float = 1.0
    shift: float = 0.0
    local: bool = False                  # norms over channels alone, as in UNetConfig.local


class Gaussian:
    """The encoder's output as a diagonal Gaussian over latents.

    moments: (b 2c h w), c means and then c log variances, the latter clamped to [-30, 20].
    """

    def __init__(self, moments: Tensor):
        self.mean, log_variance = moments.chunk(2, dim=1)
        self.log_variance = log_variance.clamp(-30, 20)

    def sample(self, generator: torch.Generator | None = None,
               noise: Tensor | None = None) -> Tensor:
        """One sample, (b c h w). noise: standard normal, like the mean; without it, it is generated
        on the CPU, so that a seed means the same on every device."""
        if noise is None:
            noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        return self.mean + (self.log_variance / 2).exp() * noise

    def kl(self) -> Tensor:
        """Divergence from the standard normal in nats, summed over a frame: (b,)."""
        # KL = 1/2 sum(mu^2 + sigma^2 - 1 - log sigma^2)         Kingma & Welling 2014, appendix B
        terms = self.mean ** 2 + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * terms.flatten(1).sum(1)


def _norm(config: AutoencoderConfig):
    return ChannelLayerNorm if config.local else group_norm


class Encoder(nn.Sequential):
    """Frames (b 3 h w) in [-1, 1] -> moments (b 2*latent_channels h/f w/f)."""

    def __init__(self, config: AutoencoderConfig):
        c, norm = config.channels, _norm(config)
        layers = [nn.PixelUnshuffle(config.patch),
                  nn.Conv2d(3 * config.patch ** 2, c[0], 3, padding=1)]
        for i in range(len(c)):
            layers += [ResBlock(c[i], c[i], norm=norm) for _ in range(config.blocks)]
            if i + 1 < len(c):
                layers.append(Downsample(c[i], c[i + 1]))
        layers += [ResBlock(c[-1], c[-1], norm=norm), norm(c[-1]), nn.SiLU()]
        layers.append(nn.Conv2d(c[-1], 2 * config.latent_channels, 1))
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Latents in the encoder's own scale (b latent_channels h w) -> frames (b 3 fh fw)."""

    def __init__(self, config: AutoencoderConfig):
        c, norm = config.channels, _norm(config)
        layers = [nn.Conv2d(config.latent_channels, c[-1], 3, padding=1),
                  ResBlock(c[-1], c[-1], norm=norm)]
        for i in reversed(range(len(c))):
            layers += [ResBlock(c[i], c[i], norm=norm) for _ in range(config.blocks)]
            if i:
                layers.append(Upsample(c[i], c[i - 1]))
        layers += [norm(c[0]), nn.SiLU(), nn.Conv2d(c[0], 3 * config.patch ** 2, 3, padding=1)]
        super().__init__(*layers, nn.PixelShuffle(config.patch))

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the last convolution, on which `adaptive_weight` compares gradients."""
        return self[-2].weight


class Autoencoder(Pretrained, nn.Module):
    """Frames (b 3 h w) in [-1, 1] <-> latents (b c h/f w/f) of mean 0 and variance 1."""
    config_class = AutoencoderConfig

    def __init__(self, config: AutoencoderConfig = AutoencoderConfig()):
        super().__init__()
        self.config, self.encoder, self.decoder = config, Encoder(config), Decoder(config)

    @property
    def factor(self) -> int:
        """f: pixels along one side of a frame for one latent."""
        return self.config.patch * 2 ** (len(self.config.channels) - 1)

    def posterior(self, x: Tensor) -> Gaussian:
        """Frames (b 3 h w) -> Gaussian over latents before scaling.

        Raises ValueError unless there are 3 channels and h and w are divisible by f.
        """
        f = self.factor
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % f or x.shape[3] % f:
            raise ValueError("the encoder takes frames (b, 3, h, w) with h and w divisible by "
                             f"{f}, got {tuple(x.shape)}")
        return Gaussian(self.encoder(x))

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Frames (b 3 h w) -> scaled latents (b c h/f w/f): the mean; given a generator, a sample.

        Raises ValueError as `posterior` does.
        """
        posterior = self.posterior(x)
        z = posterior.mean if generator is None else posterior.sample(generator)
        return (z - self.config.shift) * self.config.scale

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (b c h w) -> frames (b 3 fh fw), roughly in [-1, 1], not clamped.

        Raises ValueError for another number of channels.
        """
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            raise ValueError(f"the decoder takes latents (b, {self.config.latent_channels}, h, w), "
                             f"got {tuple(z.shape)}")
        return self.decoder(z / self.config.scale + self.config.shift)


# -------------------------------------------------------------------------------------------------
# The temporal decoder (paper, section 3.1.1): the same decoder with temporal layers inserted. The
# encoder has none, so that the image model's latents stay what they were.

class VideoDecoder(nn.Module):
    """Latents of clips (b t c h w) -> videos (b t 3 fh fw), roughly in [-1, 1], not clamped.

    layers: TemporalLayers inserted into autoencoder.decoder; None decodes frame by frame.
    """

    def __init__(self, autoencoder: Autoencoder, layers: TemporalLayers | None = None):
        super().__init__()
        self.autoencoder, self.layers = autoencoder, layers
        self.net = VideoModel(autoencoder.decoder, layers) if layers else None

    def forward(self, z: Tensor) -> Tensor:
        if self.net is None:
            x = self.autoencoder.decode(rearrange(z, "b t c h w -> (b t) c h w"))
            return rearrange(x, "(b t) c h w -> b t c h w", t=z.shape[1])
        config = self.autoencoder.config
        return self.net(z / config.scale + config.shift)

    def chunks(self, z: Tensor, frames: int = 8, overlap: int = 4) -> Iterator[Tensor]:
        """Decode `frames` frames at a time: memory does not grow with the length of the video.

        Each chunk is decoded together with up to `overlap` neighbouring frames on both sides, which
        are then dropped. Group norms pool over the chunk instead of the video, so that a chunk is
        only approximately the same as in one pass; a larger overlap is closer.
        """
        for seen, kept in tiles(z.shape[1], frames, overlap):
            first, last = kept.start - seen.start, kept.stop - seen.start
            yield self(z[:, seen])[:, first:last]


# -------------------------------------------------------------------------------------------------
# The critic: real or decoded, patch by patch (Isola et al. 2017; Esser et al. 2021).

class PatchCritic(nn.Sequential):
    """Frames (b 3 h w) -> one score for each patch (b 1 h' w'), higher for real frames.

    dims=3: the critic of the temporal decoder (paper, section 3.1.1), clips (b 3 t h w) ->
    (b 1 t h' w'). Its kernels are three frames deep with stride 1 in time; with three layers and
    the last convolution one score depends on nine frames.
    """

    def __init__(self, channels: int = 32, layers: int = 3, dims: int = 2):
        def conv(c_in: int, c_out: int, stride: int = 2, bias: bool = True) -> nn.Module:
            if dims == 2:
                return nn.Conv2d(c_in, c_out, 4, stride, 1, bias=bias)
            return nn.Conv3d(c_in, c_out, (3, 4, 4), (1, stride, stride), 1, bias=bias)

        parts, c_in = [conv(3, channels), nn.LeakyReLU(0.2)], channels
        for i in range(1, layers):
            c = channels * 2 ** i
            parts += [conv(c_in, c, bias=False), group_norm(c), nn.LeakyReLU(0.2)]
            c_in = c
        super().__init__(*parts, conv(c_in, 1, stride=1))


def hinge_critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: scores of real frames above 1, of decoded ones below -1. -> scalar."""
    # L_D = 1/2 (E relu(1 - D(x)) + E relu(1 + D(x_hat)))                           Lim & Ye 2017
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_decoder_loss(fake: Tensor) -> Tensor:
    """The decoder's adversarial loss, L_G = -E D(x_hat). -> scalar."""
    return -fake.mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor,
                    most: float = 1e4) -> Tensor:
    """Weight of the adversarial loss with which both losses have the same gradient norm on the
    decoder's last layer (Esser et al. 2021, eq. 7). -> scalar in [0, most] without a gradient."""
    def gradient_norm(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()

    # lambda = |grad L_rec| / (|grad L_adv| + delta)
    weight = gradient_norm(reconstruction) / (gradient_norm(adversarial) + 1e-4)
    return weight.clamp(0, most).detach()
