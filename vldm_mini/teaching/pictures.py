"""Pictures of video: filmstrips, movies, x-t slices, sliders that need no kernel, and two plots.

What notebooks use, under one name; the work is done in `frames` (pixels and bytes), `stills`,
`movies`, `widgets` and `curves`. Every function takes frames and returns a small object. In a
notebook the object is shown as HTML with an alt text; it has a PNG for pages that remove HTML, and
a text form that is the same in every run. Frames are `t c h w` (one video) or `b t c h w`
(several, side by side): float in [-1, 1] (values beyond are clamped) or uint8; uint8 frames may be
`t h w 3` as well, the way video files are read.

One picture runs through all chapters, the *x-t slice*: one row of pixels, followed over time (time
runs downwards). Independent frames look like static, motion is slanted lines, flicker is stripes,
drift is a gradient. Chapter 00 explains it.

    pictures.movie(frames)                     # plays three times and stops; .save("video.mp4")
    pictures.strip(frames)                     # frames from left to right, one row per video
    pictures.slice(frames, row=20)             # the x-t slice of pixel row 20
    pictures.beside(pictures.movie(frames), pictures.slice(frames), labels=["video", "x-t"])
    pictures.scrubber([video_a, video_b], ["alpha = 0", "alpha = 1"])
"""

from .curves import alphas, losses
from .frames import COLOURS, GAP, GREY, encode_image, pixels, uri, write_beside
from .movies import Movie, encode_video, movie, save_growing
from .stills import Beside, Picture, beside, moving_row, slice, strip
from .widgets import Scrubber, draw_boxes, read_boxes, scrubber

__all__ = [
    "COLOURS",
    "GAP",
    "GREY",
    "Beside",
    "Movie",
    "Picture",
    "Scrubber",
    "alphas",
    "beside",
    "draw_boxes",
    "encode_image",
    "encode_video",
    "losses",
    "movie",
    "moving_row",
    "pixels",
    "read_boxes",
    "save_growing",
    "scrubber",
    "slice",
    "strip",
    "uri",
    "write_beside",
]
