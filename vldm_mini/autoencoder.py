"""The autoencoder: frames to latents and back, and the patch critic that keeps the decoder sharp.

Paper: section 2 (LDM, after Rombach et al. 2022). Works frame by frame, `b c h w`; the temporal decoder of section
3.1.1 is this decoder with temporal layers put in. Chapter 03 trains it.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .blocks import Downsample, ChannelLayerNorm, ResBlock, Upsample, group_norm
from .context import tiles
from .temporal import VideoModel
from .weights import Pretrained


@dataclass(frozen=True)
class AutoencoderConfig:
    """f = patch * 2^(len(channels) - 1). z = (mean - shift) * scale has mean 0 and variance 1; measured in training."""
    channels: tuple = (64, 96)
    latent_channels: int = 4
    blocks: int = 1
    patch: int = 2                       # MINI: pixels are folded into channels first: half the cost, hardly a loss
    scale: float = 1.0
    shift: float = 0.0
    local: bool = False                  # norms that see their own place alone, as UNetConfig.local


class Gaussian:
    """The encoder's answer: a diagonal Gaussian over latents. moments (b 2c h w): means, then log variances."""

    def __init__(self, moments):
        self.mean, log_variance = moments.chunk(2, dim=1)
        self.log_variance = log_variance.clamp(-30, 20)

    def sample(self, generator=None):
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        return self.mean + (self.log_variance / 2).exp() * noise

    def kl(self):
        """Divergence from the standard normal, in nats, summed over a frame -> (b,)."""
        # KL = 1/2 sum(mu^2 + sigma^2 - 1 - log sigma^2)                           Kingma & Welling 2014, appendix B
        return 0.5 * (self.mean ** 2 + self.log_variance.exp() - 1 - self.log_variance).flatten(1).sum(1)


class Encoder(nn.Sequential):
    """(b 3 h w) in [-1, 1] -> moments (b 2*latent h/f w/f)."""

    def __init__(self, config):
        c, norm = config.channels, ChannelLayerNorm if config.local else group_norm
        layers = [nn.PixelUnshuffle(config.patch), nn.Conv2d(3 * config.patch ** 2, c[0], 3, padding=1)]
        for i in range(len(c)):
            layers += [ResBlock(c[i], c[i], norm=norm) for _ in range(config.blocks)]
            layers += [Downsample(c[i], c[i + 1])] if i + 1 < len(c) else []
        layers += [ResBlock(c[-1], c[-1], norm=norm), norm(c[-1]), nn.SiLU()]
        layers += [nn.Conv2d(c[-1], 2 * config.latent_channels, 1)]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Latents as the encoder gave them (b latent h w) -> frames (b 3 fh fw)."""

    def __init__(self, config):
        c, norm = config.channels, ChannelLayerNorm if config.local else group_norm
        layers = [nn.Conv2d(config.latent_channels, c[-1], 3, padding=1), ResBlock(c[-1], c[-1], norm=norm)]
        for i in reversed(range(len(c))):
            layers += [ResBlock(c[i], c[i], norm=norm) for _ in range(config.blocks)]
            layers += [Upsample(c[i], c[i - 1])] if i else []
        super().__init__(*layers, norm(c[0]), nn.SiLU(), nn.Conv2d(c[0], 3 * config.patch ** 2, 3, padding=1),
                         nn.PixelShuffle(config.patch))

    @property
    def last_layer(self):
        return self[-2].weight


class Autoencoder(Pretrained, nn.Module):
    """encode: frames (b 3 h w) in [-1, 1] -> latents (b c h/f w/f) of about unit variance; decode: back."""
    config_class = AutoencoderConfig

    def __init__(self, config=AutoencoderConfig()):
        super().__init__()
        self.config, self.encoder, self.decoder = config, Encoder(config), Decoder(config)

    @property
    def factor(self):
        """f: how many pixels of a side one latent stands for."""
        return self.config.patch * 2 ** (len(self.config.channels) - 1)

    def posterior(self, x):
        """Frames (b 3 h w) -> Gaussian over latents, not yet scaled. Raises ValueError for a wrong shape."""
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(f"the encoder takes frames (b, 3, h, w) with h and w divisible by {self.factor}, "
                             f"got {tuple(x.shape)}")
        return Gaussian(self.encoder(x))

    def encode(self, x, generator=None):
        """Latents scaled to unit variance: the mean, or with a generator a sample. (b 3 h w) -> (b c h/f w/f)."""
        posterior = self.posterior(x)
        z = posterior.mean if generator is None else posterior.sample(generator)
        return (z - self.config.shift) * self.config.scale

    def decode(self, z):
        """Scaled latents (b c h w) -> frames (b 3 fh fw), about [-1, 1]."""
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            raise ValueError(f"the decoder takes latents (b, {self.config.latent_channels}, h, w), "
                             f"got {tuple(z.shape)}")
        return self.decoder(z / self.config.scale + self.config.shift)


# ---------------------------------------------------------------------------------------------------------------------
# The temporal decoder (paper, section 3.1.1): the same decoder with temporal layers put in; the encoder knows of none.

class VideoDecoder(nn.Module):
    """Latents of a film (b t c h w) -> the film (b t 3 fh fw), about [-1, 1].

    layers: TemporalLayers put into autoencoder.decoder; None: frame by frame.
    """

    def __init__(self, autoencoder, layers=None):
        super().__init__()
        self.autoencoder, self.layers = autoencoder, layers
        self.net = VideoModel(autoencoder.decoder, layers) if layers else None

    def forward(self, z):
        if self.net is None:
            x = self.autoencoder.decode(rearrange(z, "b t c h w -> (b t) c h w"))
            return rearrange(x, "(b t) c h w -> b t c h w", t=z.shape[1])
        config = self.autoencoder.config
        return self.net(z / config.scale + config.shift)

    def chunks(self, z, frames=8, overlap=4):
        """The film in parts of `frames` frames, one after another; memory does not extend with its length.

        Each part is decoded with `overlap` frames more on both sides, where there are any. Group norms see the part
        and not the film, so that a part is not exactly the film's; the more overlap, the nearer.
        """
        for seen, kept in tiles(z.shape[1], frames, overlap):
            yield self(z[:, seen])[:, kept.start - seen.start:][:, :kept.stop - kept.start]


# ---------------------------------------------------------------------------------------------------------------------
# The critic: real or decoded, judged patch by patch (Isola et al. 2017; Esser et al. 2021).

class PatchCritic(nn.Sequential):
    """Frames (b 3 h w) -> one score a patch (b 1 h' w'), higher for real.

    dims=3: the critic of the temporal decoder (paper, section 3.1.1), clips (b 3 t h w) -> (b 1 t h' w'). Kernels are
    three frames deep and keep their number: with three layers and the last one a score has seen nine frames.
    """

    def __init__(self, channels=32, layers=3, dims=2):
        def conv(c_in, c_out, stride=2, **how):
            if dims == 2:
                return nn.Conv2d(c_in, c_out, 4, stride, 1, **how)
            return nn.Conv3d(c_in, c_out, (3, 4, 4), (1, stride, stride), 1, **how)
        parts, c_in = [conv(3, channels), nn.LeakyReLU(0.2)], channels
        for i in range(1, layers):
            c = channels * 2 ** i
            parts += [conv(c_in, c, bias=False), group_norm(c), nn.LeakyReLU(0.2)]
            c_in = c
        super().__init__(*parts, conv(c_in, 1, stride=1))


def hinge_critic_loss(real, fake):
    """What the critic minimises: scores of real above 1, of decoded below -1. Any shapes -> scalar."""
    # L_D = 1/2 (E relu(1 - D(x)) + E relu(1 + D(x_hat)))                                        Lim & Ye 2017
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_decoder_loss(fake):
    """What the decoder minimises: L_G = -E D(x_hat)."""
    return -fake.mean()


def adaptive_weight(reconstruction, adversarial, last_layer, most=1e4):
    """Weight that makes both losses pull equally hard on the decoder's last layer (Esser et al. 2021, eq. 7)."""
    gradient = lambda loss: torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()          # noqa: E731
    # lambda = |grad L_rec| / (|grad L_adv| + delta)
    return (gradient(reconstruction) / (gradient(adversarial) + 1e-4)).clamp(0, most).detach()
