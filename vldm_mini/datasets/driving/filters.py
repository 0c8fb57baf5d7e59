"""Area averaging: a pixel of a rendered frame is the mean over its square, not a point sample.

Upright pictures are averaged through their integral (Crow 1984). Textures on the ground are
averaged through their halvings (Williams 1983), each side halved for itself, since a road far away
is squeezed along its direction and not across it.
"""
import numpy as np


def integral(image: np.ndarray) -> np.ndarray:
    """The sums of an image (h, w, c) over all rectangles from its corner: (h + 1, w + 1, c)."""
    return np.pad(image, ((1, 0), (1, 0), (0, 0))).cumsum(0).cumsum(1)


def mean_over(sums: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The mean of an image over each pixel of a grid; the image is zero outside its bounds.

    sums: the image's `integral`. y, x: edges of the grid's pixels, in texels, evenly spaced.
    Returns float32 (len(y) - 1, len(x) - 1, c).
    """
    part = np.diff(_interpolate(sums, y), axis=0).swapaxes(0, 1)
    part = np.diff(_interpolate(part, x), axis=0).swapaxes(0, 1)
    return (part / ((y[1] - y[0]) * (x[1] - x[0]))).astype(np.float32)


def _interpolate(sums: np.ndarray, position: np.ndarray) -> np.ndarray:
    """sums at fractional positions of its first axis. Exact: an integral is linear in a texel."""
    position = np.minimum(np.maximum(position, 0), len(sums) - 1)
    low = np.minimum(position.astype(int), len(sums) - 2)
    part = sums[low]
    return part + (position - low)[:, None, None] * (sums[low + 1] - part)


class Sprite:
    """An upright picture with transparency that can be resampled at any size.

    rgba: (h, w, 4) in [0, 1]; colours may exceed 1 (lit windows). shape: (h, w).
    """

    def __init__(self, rgba: np.ndarray):
        self.shape = rgba.shape[:2]
        premultiplied = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)
        levels = [premultiplied]
        while min(levels[-1].shape[:2]) >= 8 and not any(n % 2 for n in levels[-1].shape[:2]):
            h, w = levels[-1].shape[:2]
            levels.append(levels[-1].reshape(h // 2, 2, w // 2, 2, 4).mean((1, 3)))
        self.sums = [integral(level) for level in levels]

    def resample(self, y: np.ndarray, x: np.ndarray, height: float, width: float) -> np.ndarray:
        """The picture at a size of height x width pixels, averaged over each pixel of a grid.

        y, x: edges of the grid's pixels, in pixels from the picture's corner. Returns float32
        (len(y) - 1, len(x) - 1, 4), colours premultiplied by the coverage in the last channel.
        """
        # the coarsest level that still has two texels to a pixel
        level = 0
        while level + 1 < len(self.sums) and len(self.sums[level + 1]) > 2 * height:
            level += 1
        sums = self.sums[level]
        rows, columns = sums.shape[0] - 1, sums.shape[1] - 1
        return mean_over(sums, y * (rows / height), x * (columns / width))


class GroundTexture:
    """A texture (h, w, c) that lies on the ground and repeats, with all halvings of its two sides.

    metres: length along the road and width across it. h and w are powers of two.
    """

    def __init__(self, image: np.ndarray, metres: tuple[float, float]):
        h, w = image.shape[:2]
        self.metres = metres
        # numbers of texels along and across, from the finest level to the coarsest
        self.along = 2 ** np.arange(int(np.log2(h)), -1, -1)
        self.across = 2 ** np.arange(int(np.log2(w)), -1, -1)
        levels = [image.reshape(n, h // n, m, w // m, -1).mean((1, 3)).reshape(n * m, -1)
                  for n in self.along for m in self.across]
        sizes = np.array([len(level) for level in levels])
        # all levels lie in one table of texels; `start` says where each begins
        self.start = (sizes.cumsum() - sizes).reshape(len(self.along), len(self.across))
        self.texels = np.concatenate(levels).astype(np.float32)

    def mean_over(self, s: np.ndarray, ds: np.ndarray, d: np.ndarray, dd: np.ndarray) -> np.ndarray:
        """The texture averaged over the ground that each pixel covers, linearly interpolated.

        s, ds: (rows,) position along the road and how much of it a pixel covers; d (rows, w) and
        dd (rows,): the same across the road; all in metres. Returns float32 (rows, w, c).
        """
        i = self._level(ds, self.along, self.metres[0])
        j = self._level(dd, self.across, self.metres[1])
        n, m, start = self.along[i], self.across[j], self.start[i, j]
        y = s / self.metres[0] * n - 0.5
        x = d / self.metres[1] * m[:, None] - 0.5
        y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
        row0 = (start + y0 % n * m)[:, None]
        row1 = (start + (y0 + 1) % n * m)[:, None]
        column0 = x0 & (m - 1)[:, None]                             # modulo m, a power of two
        column1 = (x0 + 1) & (m - 1)[:, None]
        fy = (y - y0).astype(np.float32)[:, None, None]
        fx = (x - x0).astype(np.float32)[..., None]
        near = _mix(self.texels[row0 + column0], self.texels[row0 + column1], fx)
        far = _mix(self.texels[row1 + column0], self.texels[row1 + column1], fx)
        return _mix(near, far, fy)

    @staticmethod
    def _level(size: np.ndarray, texels: np.ndarray, metres: float) -> np.ndarray:
        """The level whose texels are about as large as a pixel's footprint of `size` metres."""
        level = np.round(np.log2(np.maximum(size * texels[0] / metres, 1))).astype(int)
        return level.clip(max=len(texels) - 1)


def _mix(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return a + weight * (b - a)
