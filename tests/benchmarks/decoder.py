"""Does the temporal decoder flicker less than the frame-wise one, trained for as many steps more?

Held-out drives, 200 clips of 8 frames at 30 a second, true latents. Both decoders begin as the shipped one and are
trained on the same films for the same steps: the frame-wise one in all its weights with a critic of frames, the
temporal one in its temporal layers only with a critic of clips. flicker_ratio: `metrics.flicker`, temporal over
frame-wise. psnr_gain_db: temporal minus frame-wise. video_distance_gain: Fréchet distance of films to the true ones,
frame-wise over temporal. frame_distance_ratio: of frames, temporal over frame-wise. Beside them the shipped decoder
without more training, and an opponent: the frame-wise film blurred along time. slow_flicker_ratio: of the slowest
quarter of the drives, where detail that was lost does not move, and what changes is the decoder's own.
chunks_psnr_db: 48 frames in parts against the whole.
"""
from dataclasses import replace

import torch
from einops import rearrange

from vldm_mini import metrics, recipes, weights
from vldm_mini.autoencoder import Autoencoder, PatchCritic, VideoDecoder
from vldm_mini.datasets import driving, video
from vldm_mini.temporal import TemporalLayers
from vldm_mini.training import Record, Settings, train

from . import _drives, _samples

N, FPS = 200, 30


def films(n=N, frames=8):
    """Held-out drives at 30 frames a second -> (n t 3 64 128) in [-1, 1], their speeds (n,) in m/s."""
    drives = [driving.Drive(seed, frames, 64, FPS, start=2.0) for seed in driving.seeds("held_out", n, first=20_000)]
    return (torch.stack([video.to_float(drive.frames) for drive in drives]),
            torch.tensor([float(drive.scene.speed(drive.times).mean()) for drive in drives]))


def frame_wise(folder):
    """The shipped decoder, trained on as the temporal one was, frame by frame. Kept in runs/."""
    settings = Settings(**Record.load(folder / "decoder").settings)
    key = _samples.key(folder, ("autoencoder",), frame_wise_decoder=settings.steps)
    out = _samples.RUNS / "samples" / f"{key}-decoder"
    if not (out / weights.WEIGHTS).is_file():
        model = Autoencoder.from_pretrained(folder / "autoencoder").train()
        model.encoder.requires_grad_(False)
        torch.manual_seed(settings.seed)
        players = recipes.decoder_players(VideoDecoder(model), model.decoder, model.decoder.last_layer, PatchCritic(),
                                          recipes.decoder_films("driving", recipes.DRIVING["s"]), settings, 8)
        train(out, replace(settings), players)
        model.save_pretrained(out)
    return Autoencoder.from_pretrained(out)


@torch.no_grad()
def decoded(decoder, z):
    return torch.cat([decoder(part) for part in z.split(4)]).clamp(-1, 1)


def blurred(x, share=0.25):
    """Each frame mixed with its neighbours: what flicker alone would reward."""
    before, after = torch.cat([x[:, :1], x[:, :-1]], 1), torch.cat([x[:, 1:], x[:, -1:]], 1)
    return (1 - 2 * share) * x + share * (before + after)


@torch.no_grad()
def run(folder=None, n=N):
    """All figures; arguments are for tests."""
    folder = folder or weights.shipped(_drives.WEIGHTS)
    with torch.enable_grad():
        trained_on = frame_wise(folder)
    model = Autoencoder.from_pretrained(folder / "autoencoder")
    temporal = VideoDecoder(model, TemporalLayers.from_pretrained(folder / "decoder", model.decoder))
    judge, (x, speed) = _drives.judges(folder)[0], films(n)
    z = torch.cat([rearrange(model.encode(part.flatten(0, 1)), "(b t) c h w -> b t c h w", b=len(part))
                   for part in x.split(8)])
    out = {"temporal": decoded(temporal, z), "frame-wise": decoded(VideoDecoder(trained_on), z),
           "shipped": decoded(VideoDecoder(model), z)}
    out["frame-wise, blurred in time"] = blurred(out["frame-wise"])
    true, said = judge.judge(x), {name: judge.judge(y) for name, y in out.items()}
    report = lambda a, kind: metrics.frechet_report(                                                    # noqa: E731
        getattr(a, kind).flatten(0, -2), getattr(true, kind).flatten(0, -2), torch.Generator().manual_seed(0))
    table = {name: dict(psnr_db=round(float(metrics.psnr(y, x).mean()), 3), flicker=float(metrics.flicker(y, x).mean()),
                        video_distance=report(said[name], "films"), frame_distance=report(said[name], "frames"))
             for name, y in out.items()}
    ours, other = table["temporal"], table["frame-wise"]
    long = model.encode(films(1, 48)[0][0])[None]
    whole, parts = temporal(long), torch.cat(list(temporal.chunks(long)), 1)
    slow = speed <= speed.quantile(0.25)
    boil = {name: float(metrics.flicker(out[name][slow], x[slow]).mean()) for name in ("temporal", "frame-wise")}
    far = lambda row, kind: row[kind]["distance"]                                                       # noqa: E731
    return {"flicker_ratio": round(ours["flicker"] / other["flicker"], 4),
            "psnr_gain_db": round(ours["psnr_db"] - other["psnr_db"], 3),
            "video_distance_gain": round(far(other, "video_distance") / far(ours, "video_distance"), 3),
            "frame_distance_ratio": round(far(ours, "frame_distance") / far(other, "frame_distance"), 3),
            "chunks_psnr_db": round(float(metrics.psnr(parts, whole).mean()), 2),
            "slow_flicker_ratio": round(boil["temporal"] / boil["frame-wise"], 4), "n": n, "table": table}
