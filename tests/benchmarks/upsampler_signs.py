"""The figures of `upsampler` on real video: the held-out clips of `signs`, 64x64 to 256x256, both upsamplers.

As `upsampler`, 20 patches of each clip, as fast as they were filmed; features are those of the driving classify, which has
never seen a hand: they tell textures and edges apart, no more. The floor is of other patches of the same clips. Beside
them the pixel upsampler of `driving`, which has never seen real video: on the same patches, and on `road`, 256x512 of
two clips from a car, 40 patches of each; nothing was trained on it. Sheets (bicubic, drawn, true): data/media/signs.webp, runs/samples/road.webp.
"""
import torch

from vldm_mini import weights
from vldm_mini.datasets import video
from vldm_mini.evaluation import action_samples, driving_samples
from vldm_mini.teaching import pictures
from vldm_mini.training.upsampler_recipes import SIZES, large_clips
from vldm_mini.upsampler import KINDS, VideoUpsampler

from .upsampler import FRAMES, HEIGHT, MARGIN, SEED, WIDTH, bicubic, compared, followed, inner, kept, shrunk

EACH, MEANS = 20, 8


def patches(films, each=EACH, first=0):
    """Films uint8 (t h w 3) -> (n 8 3 96 160), at moments and insertion_points drawn evenly."""
    out, h, w = [], HEIGHT + 8 * MARGIN, WIDTH + 8 * MARGIN
    for k, film in enumerate(films):
        for i in range(each):
            g = torch.Generator().manual_seed(1000 * k + first + i)
            at = int(torch.randint(len(film) - FRAMES + 1, (1,), generator=g))
            top, left = (4 * int(torch.randint((size - side) // 4 + 1, (1,), generator=g))
                         for size, side in zip(film.shape[1:3], (h, w)))
            out.append(video.to_float(film[at:at + FRAMES, top:top + h, left:left + w]))
    return torch.stack(out)


def run(folder=None, each=EACH, means=MEANS):
    """All figures; arguments are for tests."""
    folder, other = folder or weights.shipped("signs"), weights.shipped(driving_samples.WEIGHTS)
    classify = driving_samples.classifiers(other)[0]
    signs, clips = large_clips("signs", SIZES["s"], "held_out"), video.load("road", size=(256, 512))
    signs, road = ((x := patches(films, k), patches(films, k, 500), followed(inner(x))) for films, k in
                   ((signs, each), ([clip.frames for clip in clips], 2 * each)))
    found = {kind: compared(VideoUpsampler.from_pretrained(folder, kind), *signs, classify, kept(folder, kind), means)
             for kind in KINDS}
    plain = VideoUpsampler.from_pretrained(other)
    beside = {f"driving's weights on {name}": compared(plain, *x, classify, kept(other, "pixel"), means)
              for name, x in (("signs", signs), ("road", road))}
    where = {"signs": action_samples.ROOT / "data" / "films" / "signs.webp", "road": action_samples.RUNS / "samples" / "road.webp"}
    for name, by, up, x in (("signs", folder, VideoUpsampler.from_pretrained(folder), signs[0]), ("road", other, plain, road[0])):
        films = bicubic(shrunk(x)), kept(by, "pixel")(up, shrunk(x), seed=SEED), x
        sheet = torch.stack([inner(y)[::len(x) // 4 or 1, 0] for y in films], 1)
        if each == EACH:
            pictures.write_beside(where[name], pictures.encode_image(pictures.strip(sheet).image, "webp", quality=85))
    return found["pixel"] | {"latent": found["latent"]} | beside
