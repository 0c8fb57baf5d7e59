"""The driving world: one scene at any size and frame rate; labels and boxes are those of the frame.

Most checks are exact: a scene's cars, its centre line or its pitch are replaced by known values.
"""
import numpy as np
import pytest
import torch

from vldm_mini.datasets import driving
from vldm_mini.datasets.driving import Scene, filters, geometry, renderer
from vldm_mini.datasets.driving.sprites import PAINT, sprites

BUSY = [Scene(1, night=False, traffic=1), Scene(3, night=True, traffic=1)]
SEDAN, ESTATE, VAN = 0, 1, 2
WHITE, BLACK, RED, BLUE = 0, 1, 2, 3


class Parabola:
    """A centre line of constant curvature, in place of a scene's random one."""

    def __init__(self, curvature, slope=0.0):
        self.curvature, self.first_slope = curvature, slope

    def __call__(self, s):
        return self.curvature * np.square(s) / 2 + self.first_slope * s

    def slope(self, s):
        return self.curvature * np.asarray(s) + self.first_slope


def scene_with(*cars, seed=5, night=False):
    """A scene with these cars only: (distance, to the right, kind, paint, oncoming), far first."""
    scene = Scene(seed, night=night, traffic=0)
    rows = np.array(cars, float).reshape(-1, 5)
    scene.cars = lambda time: rows
    return scene


def window_of(scene, time, height=64):
    times = np.array([time])
    return renderer._FrameWindow(scene, times, scene.travelled(times), height, 0, 0, height,
                                 2 * height)


def psnr(a, b):
    """dB, of values 0 to 255."""
    return 10 * np.log10(255 ** 2 / np.square(a.astype(float) - b.astype(float)).mean())


def difference(a, b):
    """The largest difference over the colours of each pixel."""
    return np.abs(a.astype(int) - b.astype(int)).max(-1)


# -- one picture at any size, crop and frame rate ----------------------------------------------

@pytest.mark.parametrize("scene", BUSY)
def test_a_small_frame_is_the_large_one_averaged(scene):
    """At least 31 dB; the baselines are a frame sampled at points and the frame 0.1 s later."""
    large, later = scene.render([1.0, 1.1], 256)
    for height in (32, 64):
        f = 256 // height
        small = scene.render([1.0], height)[0]
        mean = large.reshape(height, f, 2 * height, f, 3).mean((1, 3))
        later_mean = later.reshape(height, f, 2 * height, f, 3).mean((1, 3))
        assert psnr(small, mean) > 31
        assert psnr(large[f // 2::f, f // 2::f], mean) < psnr(small, mean) - 3
        assert psnr(later_mean, mean) < psnr(small, mean) - 3


@pytest.mark.parametrize("scene", BUSY)
@pytest.mark.parametrize("crop", [(16, 32, 32, 48), (0, 0, 7, 128), (30, 1, 34, 127),
                                  (25, 60, 9, 11)])
def test_a_crop_is_that_part_of_the_frame(scene, crop):
    top, left, h, w = crop
    whole, part = scene.render([1.0], 64)[0], scene.render([1.0], 64, crop=crop)[0]
    assert difference(whole[top:top + h, left:left + w], part).max() <= 1


def test_a_frame_at_a_time_does_not_depend_on_the_frame_rate():
    slow, fast = (BUSY[0].render(np.arange(n) / fps, 32) for n, fps in ((3, 1.875), (33, 30)))
    assert difference(slow, fast[::16]).max() <= 1
    assert difference(slow[1:], fast[15:-1:16]).mean() > 0.5        # the frame before differs
    clips = [driving.DrivingClip(4, n, 32, fps, start=2.0) for n, fps in ((2, 1.875), (17, 30))]
    assert difference(clips[0].frames.numpy(), clips[1].frames[::16].numpy()).max() <= 1


def test_frames_do_not_depend_on_what_is_rendered_with_them():
    times = np.array([9.0, 0.0, 3.0])
    together = BUSY[0].render(times, 32)
    for time, frame in zip(times, together, strict=True):
        assert np.array_equal(BUSY[0].render([time], 32)[0], frame)


def test_a_scene_is_a_function_of_its_seed():
    assert np.array_equal(Scene(5).render([0.5], 32), Scene(5).render([0.5], 32))
    assert not np.array_equal(Scene(5).render([0.5], 32), Scene(6).render([0.5], 32))


def test_the_mean_over_pixels_is_the_mean_of_their_texels():
    image = np.random.default_rng(0).random((6, 8, 3))
    means = filters.mean_over(filters.integral(image), np.arange(0, 7, 2), np.arange(0, 9, 4))
    assert np.allclose(means, image.reshape(3, 2, 2, 4, 3).mean((1, 3)))
    half = filters.mean_over(filters.integral(image), np.array([-1, 1]), np.array([0.5, 1.5]))
    assert np.allclose(half[0, 0], (image[0, 0] + image[0, 1]) / 4)             # half lies outside


def test_lane_marks_keep_their_area_at_any_pixel_size():
    """Pixels side by side, narrower and wider than the stripe: their shares sum to its width."""
    for footprint in (0.03, 0.2, 0.7):
        for phase in (0.0, 0.05, 0.37):
            off = np.abs((np.arange(-200, 200) + phase) * footprint)[None]
            share = renderer._cover_stripe(0.1, off, np.full_like(off, footprint))
            assert share.min() >= 0 and share.max() <= 1
            assert np.isclose(share.sum() * footprint, 2 * 0.1)


def test_a_transparent_texel_adds_no_colour():
    rgba = np.ones((4, 4, 4))
    rgba[:, :2, 3] = 0                                              # the left half
    pixel = filters.Sprite(rgba).resample(np.array([0, 1]), np.array([0, 1]), 1, 1)
    assert np.allclose(pixel, 0.5)


def test_a_range_of_pixels_is_rounded_in_the_whole_frame():
    """low, high, begin of the window and its size, all in pixels."""
    between = renderer._FrameWindow.pixels_between
    assert between(10.3, 20.6, 0, 64) == (10, 21)
    assert between(10.3, 20.6, 4, 30) == (10, 21)
    assert between(-2.5, -0.5, 4, 30) == (0, 0)
    assert between(28.0, 40.0, 4, 30) == (28, 30)


# -- geometry: camera, road, steering ----------------------------------------------------------

def test_a_box_by_hand():
    """Two metres wide, 1.5 high, 10 m away and 1 m to the right; camera 1.35 m above the road."""
    box = driving.project(10.0, 1.0, 2.0, 1.5, 0.0)
    foot = 0.42 + 0.135 / 0.6
    assert np.allclose(box, [0.5, foot - 0.15 / 0.6, 0.5 + 0.2 / 1.2, foot])
    shaken = driving.project(10.0, 1.0, 2.0, 1.5, 0.03)
    assert np.allclose(shaken - box, [0, 0.05, 0, 0.05])            # down, by 0.03 / VIEW


@pytest.mark.parametrize("night", [False, True])
def test_a_pitch_shifts_ground_objects_and_sky_together(night):
    """A pitch of five pixels gives the level frame, five rows further down."""
    scene = Scene(3, night=night, traffic=1)
    scene.pitch = lambda time: np.zeros_like(np.asarray(time, float))
    level, level_boxes = scene.render([1.0], 64)[0], scene.boxes(1.0)
    scene.pitch = lambda time: np.full_like(np.asarray(time, float), 5 * geometry.VIEW / 64)
    shaken, boxes = scene.render([1.0], 64)[0], scene.boxes(1.0)
    assert len(boxes) > 1
    inside = (level_boxes[:, 1] > 0) & (boxes[:, 3] < 1)
    assert inside.any()
    assert np.allclose(boxes[inside][:, [1, 3]], level_boxes[inside][:, [1, 3]] + 5 / 64)
    assert difference(shaken[5:], level[:-5]).max() <= 1
    assert difference(shaken[:-5], level[5:]).max() > 60            # the other sign differs


def test_a_car_stands_on_the_row_of_ground_at_its_distance():
    """The foot of each box, through the tangents of the ground's rows, gives its distance back."""
    scene = Scene(3, traffic=1)
    for time in (1.0, 2.3, 6.1):
        assert abs(scene.pitch(time)) > 1e-4
        cars = scene.cars(time)
        window = window_of(scene, time)
        feet = np.array([car.box[3] for car in window.visible_objects(0, window.roadside())
                         if car.name in ("front", "rear")])
        rows = np.arange(65)
        tangents = np.interp(feet, rows, window.y[0])
        on_screen = feet < 64
        found = geometry.CAMERA_HEIGHT / tangents[on_screen]
        assert on_screen.any()
        distances = cars[:, 0]
        assert all(np.abs(distances - z).min() < 1e-6 for z in found)


def test_positive_steering_is_to_the_right():
    """On a road of constant curvature c the centre line at z metres lies c z^2 / 2 to the right."""
    scene = Scene(2, night=False, traffic=0)
    scene.centre_line = Parabola(0.004)
    assert np.allclose(scene.steering([0.0, 3.0]), 0.004)
    (s0,) = scene.travelled([3.0])
    z = np.array([5.0, 20.0, 50.0])
    assert np.allclose(scene.lateral_offset(s0 + z, 0, s0, 0), 0.004 * z ** 2 / 2)
    assert np.allclose(scene.lateral_offset(s0 + z, 2.5, s0, 1.0), 0.004 * z ** 2 / 2 + 1.5)


@pytest.mark.parametrize("curvature", [0.006, -0.006, 0.0])
def test_the_rendered_road_bends_as_it_is_steered(curvature):
    """Asphalt painted red, all else green: the middle of the red in each row is the centre line."""
    scene = Scene(2, night=False, traffic=0)
    scene.centre_line = Parabola(curvature)
    scene.pitch = lambda time: np.zeros_like(np.asarray(time, float))
    scene.grass, scene.asphalt = np.array([0, 0.8, 0]), np.array([0.8, 0, 0])
    scene.haze_range, time = 1e9, 1.0
    window = window_of(scene, time, height=128)
    image = np.zeros((1, 128, 256, 3), np.float32)
    window.add_ground(image)
    for z in (12.0, 20.0, 30.0):
        row = int(128 * (geometry.HORIZON + geometry.CAMERA_HEIGHT / z / geometry.VIEW))
        red = np.nonzero(image[0, row, :, 0] > 2 * image[0, row, :, 1])[0]
        middle = (red[0] + red[-1] + 1) / 2 * window.pixel - geometry.VIEW
        row_z = geometry.CAMERA_HEIGHT / (window.y[0, row] + window.pixel / 2)
        expected = curvature * row_z ** 2 / 2 - driving.LANE / 2 - scene.lane_offset(time)
        assert 0 < red[0] and red[-1] < 255 or z < 20
        if 0 < red[0] and red[-1] < 255:
            assert abs(middle - expected / row_z) < 1.5 * window.pixel


def test_texture_and_dashes_are_fixed_to_the_road(monkeypatch):
    """On a straight road, row by row: a dash is painted where there is one, and a texture that is
    dark in the first 32 m of every 64 m darkens the asphalt there."""
    bands = np.repeat([0.5, 1.5], 32)[:, None, None] * np.ones((1, 2, 2))
    texture = filters.GroundTexture(bands, (64, 16))
    monkeypatch.setattr(renderer, "ground", lambda: texture)
    scene = Scene(2, night=False, traffic=0)
    scene.centre_line, scene.haze_range = Parabola(0.0), 1e9
    window = window_of(scene, 1.0, height=256)
    z = np.arange(4.0, 60.0, 0.5)
    s0, ego = np.full(len(z), window.s0[0]), np.zeros(len(z))
    near, far = z - 0.05, z + 0.05
    rows = window.ground_colour(s0, ego, near, far, z).mean(-1)
    middle = rows[:, 256]                                           # on the centre line
    dashes = window.dashes(s0 + near, s0 + far)
    assert (dashes == 1).sum() > 10 and (dashes == 0).sum() > 10
    assert middle[dashes == 1].min() > middle[dashes == 0].max() + 0.05
    column = np.round((1.75 / z + geometry.VIEW) / window.pixel).astype(int)
    s, asphalt = (s0 + z) % 64, rows[np.arange(len(z)), column.clip(max=511)]
    away = (np.abs(s % 32 - 16) < 13)                               # from the bands' edges
    dark, bright = asphalt[away & (s < 32)], asphalt[away & (s > 32)]
    assert len(dark) > 10 and len(bright) > 10
    assert np.isclose(bright.min(), 3 * dark.max(), rtol=0.02)


def test_the_camera_shakes_with_speed_and_stands_still_at_a_stop():
    times = np.linspace(0, 60, 601)
    stopped = 0
    for seed in range(6):
        scene = Scene(seed)
        expected = scene.camera_shake(times) * scene.speed(times) / driving.MAX_SPEED
        assert np.array_equal(scene.pitch(times), expected)
        stopped += (scene.pitch(times)[scene.speed(times) == 0] == 0).sum()
    assert stopped > 0


def test_the_panorama_moves_to_the_left_when_the_car_turns_to_the_right():
    scene = Scene(2, night=False, traffic=0)
    skies = []
    for pixels in (0, 6):
        scene.centre_line = Parabola(0.0, slope=pixels * geometry.VIEW / 64)
        skies.append(window_of(scene, 1.0).sky()[0])
    ahead, turned = skies
    assert np.allclose(turned[:, :-6], ahead[:, 6:], atol=1e-5)
    assert not np.allclose(turned[:, 6:], ahead[:, :-6], atol=1e-2)


def test_speed_is_the_distance_travelled_per_second_and_stays_in_its_range():
    times = np.linspace(0, 60, 1801)
    for seed in range(6):
        scene = Scene(seed)
        speed, travelled = scene.speed(times), scene.travelled(times)
        assert speed.min() >= 0 and speed.max() <= driving.MAX_SPEED
        assert np.abs(np.diff(travelled) * 30 - (speed[1:] + speed[:-1]) / 2).max() < 0.05
    assert any((Scene(seed).speed(times) == 0).any() for seed in range(6))      # some stop


# -- other cars --------------------------------------------------------------------------------

def test_the_distance_is_the_integral_of_the_speed():
    for seed in range(3):
        scene = Scene(seed)
        times = np.arange(0, 40, 1e-3)
        speed = scene.speed(times)
        exact = np.concatenate([[0], np.cumsum((speed[1:] + speed[:-1]) / 2)]) * 1e-3
        assert np.ptp(speed) > 1
        assert np.abs(scene.travelled(times) - scene.travelled([0.0]) - exact).max() < 0.01


def test_cars_are_listed_and_objects_painted_far_ones_first():
    for scene in BUSY:
        for time in (0.0, 1.0, 5.5):
            assert (np.diff(scene.cars(time)[:, 0]) <= 0).all()
            window = window_of(scene, time)
            objects = window.visible_objects(0, window.roadside())
            feet = [thing.box[3] for thing in objects]              # nearer: further down
            assert len(feet) > 10 and (np.diff(feet) >= -1e-9).all()


def test_oncoming_cars_come_nearer_at_their_speed():
    """Followed along the road, each has moved back by speed times time; it keeps its lane."""
    scene = Scene(3, traffic=1)
    scene.centre_line = Parabola(0.0)
    positions = []
    for time in (2.0, 2.5):
        (s0,), cars = scene.travelled([time]), scene.cars(time)
        oncoming = cars[cars[:, 4] == 1]
        positions.append(oncoming[:, 0] + s0)
        ego = driving.LANE / 2 + scene.lane_offset(time)
        assert np.allclose(oncoming[:, 1], -driving.LANE / 2 - ego)
    before, after = positions
    followed = before[(before > before.min() + 10) & (before < before.max() - 10)]
    expected = followed - 0.5 * scene._oncoming_speed
    assert len(followed) >= 3 and scene._oncoming_speed >= 5
    assert all(np.abs(after - s).min() < 1e-9 for s in expected)


def test_parked_cars_do_not_move_along_the_road():
    seed = next(seed for seed in range(50) if Scene(seed)._has_parked_cars)
    scene = Scene(seed, traffic=1)
    scene.centre_line = Parabola(0.0)
    parked = []
    for time in (2.0, 3.0):
        (s0,), cars = scene.travelled([time]), scene.cars(time)
        beside = cars[(cars[:, 4] == 0) & (cars[:, 1] > driving.LANE / 2)]
        parked.append(beside[:, 0] + s0)
    before, after = parked
    followed = before[(before > after.min() + 1) & (before < before.max() - 10)]
    assert len(followed) >= 3
    assert all(np.abs(after - s).min() < 1e-9 for s in followed)


def test_oncoming_cars_never_overlap():
    pairs = 0
    for scene in BUSY:
        for time in np.linspace(0, 20, 41):
            cars = scene.cars(time)
            oncoming = np.sort(cars[cars[:, 4] == 1, 0])
            assert (np.diff(oncoming) > 5).all()
            pairs += len(oncoming) > 1
    assert pairs > 40                                               # of 82 moments


def test_the_leader_keeps_a_distance_and_its_lane():
    for seed in range(20):
        scene = Scene(seed, traffic=1)
        for time in np.linspace(0, 20, 21):
            cars = scene._leaders(time, scene.travelled([time])[0])
            gaps = cars[0] - scene.travelled([time])
            assert (gaps > 4).all() and (cars[1] == driving.LANE / 2).all()


# -- boxes -------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [SEDAN, ESTATE, VAN])
def test_a_box_has_the_width_and_the_height_of_its_kind_of_car(kind):
    scene = scene_with((12.0, 1.0, kind, RED, 0))
    (box,) = scene.boxes(1.0)
    width, height = driving.CAR_SIZE[kind]
    assert np.isclose((box[2] - box[0]) * 2 * geometry.VIEW * 12, width)
    assert np.isclose((box[3] - box[1]) * geometry.VIEW * 12, height)
    assert box[4] == 1


def test_cars_are_painted_where_their_boxes_are():
    for scene in BUSY:
        for time in (0.0, 1.0, 5.5):
            window = window_of(scene, time)
            painted = {thing.box for thing in window.visible_objects(0, window.roadside())
                       if thing.name in ("front", "rear")}
            boxes = scene.boxes(time)
            large = (boxes[:, 2] - boxes[:, 0] > 0.02) & (boxes[:, 2] > 0) & (boxes[:, 0] < 1)
            assert large.any()
            for box in boxes[large, :4] * (128, 64, 128, 64):
                distances = [np.abs(np.clip(other, 0, (128, 64, 128, 64)) - box).max()
                             for other in painted]
                assert min(distances) < 1e-9


@pytest.mark.parametrize("kind", [SEDAN, ESTATE, VAN])
@pytest.mark.parametrize("oncoming", [0, 1])
@pytest.mark.parametrize("z, x", [(8.3, 0.4), (15.0, -3.1), (6.2, 2.9)])
def test_a_box_encloses_the_pixels_of_its_car_and_fits_them(kind, oncoming, z, x):
    """By day a car changes nothing outside its box but its shadow, and it reaches all four sides.

    White cars on grey: what changes by more than the picture's rounding is the car.
    """
    scene = scene_with((z, x, kind, WHITE, oncoming), seed=9)
    with_car = scene.render([1.0], 128)[0]
    x0, y0, x1, y1, _ = scene.boxes(1.0)[0] * (256, 128, 256, 128, 1)
    scene.cars = lambda time: np.zeros((0, 5))
    changed = difference(with_car, scene.render([1.0], 128)[0]) > 0
    shadow = int(y1 - 3 * 0.08 * (y1 - y0)) - 1                     # the first row it can reach
    rows, columns = np.nonzero(changed)
    above = rows < shadow
    assert above.sum() > 50
    assert rows.min() >= int(y0) and columns[above].min() >= int(x0)
    assert columns[above].max() <= int(x1)
    assert rows.min() <= y0 + 0.06 * (y1 - y0) + 1
    assert columns[above].min() <= x0 + 0.04 * (x1 - x0) + 1
    assert columns[above].max() >= min(255, x1 - 0.04 * (x1 - x0) - 2)
    assert rows.max() <= y1 + 3 * 0.08 * (y1 - y0) + 1


@pytest.mark.parametrize("paint", range(len(PAINT)))
def test_a_car_has_its_paint_seen_through_the_haze(paint):
    """A pixel of the rear between plate and bumper: its colour by hand."""
    scene = scene_with((6.0, 0.0, SEDAN, paint, 0))
    scene.haze_range = 10.0
    x0, y0, x1, y1, _ = scene.boxes(1.0)[0] * (512, 256, 512, 256, 1)
    row, column = int(y0 + 0.735 * (y1 - y0)), int((x0 + x1) / 2)
    v = (row + 0.5 - y0) / (y1 - y0)
    clear = np.exp(-6.0 / 10.0)
    colour = PAINT[paint] * (1.12 - 0.5 * v) * scene.light * clear + (1 - clear) * scene.haze
    pixel = scene.render([1.0], 256)[0, row, column]
    assert np.abs(pixel - 255 * colour.clip(0, 1)).max() < 2


def test_a_van_fills_the_upper_corner_of_its_box_and_a_sedan_does_not():
    changed = []
    for kind in (SEDAN, ESTATE, VAN):
        scene = scene_with((6.0, 0.0, kind, RED, 0))
        x0, y0, x1, y1, _ = scene.boxes(1.0)[0] * (512, 256, 512, 256, 1)
        at = int(y0 + 0.05 * (y1 - y0)), int(x0 + 0.1 * (x1 - x0))
        frames = scene.render([1.0], 256)[0], scene_with().render([1.0], 256)[0]
        changed.append(bool(difference(*frames)[at] > 0))
    assert changed == [False, False, True]


def test_the_nearer_of_two_cars_hides_the_other():
    """Where the nearer car is, the picture is that of the nearer car alone; elsewhere both show."""
    far, near = (24.0, 1.0, VAN, RED, 0), (8.0, 0.2, SEDAN, BLUE, 0)
    both, alone = scene_with(far, near), scene_with(near)
    picture, of_near = both.render([1.0], 128)[0], alone.render([1.0], 128)[0]
    without = scene_with().render([1.0], 128)[0]
    far_box, near_box = both.boxes(1.0)
    x0, y0, x1, y1 = (near_box[:4] * (256, 128, 256, 128)).astype(int)
    body = slice(y0 + (y1 - y0) // 2, y1 - (y1 - y0) // 5), slice(x0 + 4, x1 - 4)
    assert np.array_equal(picture[body], of_near[body])
    assert difference(of_near[body], without[body]).mean() > 30
    u0, v0, u1, _ = (far_box[:4] * (256, 128, 256, 128)).astype(int)
    beside = slice(v0 + 1, y0 - 1), slice(u0 + 1, u1)               # above the nearer car's roof
    assert y0 - v0 > 4 and difference(picture[beside], of_near[beside]).mean() > 30


def test_the_visible_share_is_what_no_nearer_box_covers():
    far, near = [0.4, 0.4, 0.6, 0.6], [0.5, 0.3, 0.8, 0.7]
    assert np.allclose(driving.visible_share(np.array([far, near])), [0.5, 1])
    assert np.allclose(driving.visible_share(np.array([near, far])), [1 - 1 / 6, 1])
    quarter = [0.5, 0.5, 0.7, 0.7]
    assert np.allclose(driving.visible_share(np.array([far, quarter])), [0.75, 1])
    assert np.allclose(driving.visible_share(np.array([far, quarter, near])), [0.5, 0, 1])
    outside = np.array([[-0.1, 0.2, 0.1, 0.4], [0.2, 0.9, 0.3, 1.1]])
    assert np.allclose(driving.visible_share(outside), [0.5, 0.5])


def test_the_visible_share_of_a_car_in_a_scene():
    """Two sedans in one line, twice as far away: the nearer one covers all but the far one's roof.

    Feet lie below the horizon by 1.35 / z, roofs by (1.35 - 1.4) / z: the far car's box reaches
    from 0.05 / 20 above the horizon, where the nearer one reaches to 0.05 / 10: it is hidden.
    """
    far, near, shares = (20.0, 0.0, SEDAN, RED, 0), (10.0, 0.0, SEDAN, BLUE, 0), None
    shares = scene_with(far, near).boxes(1.0)[:, 4]
    assert np.allclose(shares, [0, 1])
    beside = (20.0, 1.75 * 1.5, SEDAN, RED, 0)      # its left quarter lies behind the nearer car
    half_width_near = 1.75 / 2 / 10
    left, width = (1.75 * 1.5 - 1.75 / 2) / 20, 1.75 / 20
    hidden = (half_width_near - left) / width
    shares = scene_with(beside, near).boxes(1.0)[:, 4]
    assert hidden == pytest.approx(0, abs=1e-9) and np.allclose(shares, [1, 1])
    quarter = (20.0, 1.75 * 1.25, SEDAN, RED, 0)
    assert np.allclose(scene_with(quarter, near).boxes(1.0)[:, 4], [0.75, 1])


def test_cars_in_sight_are_wide_enough_and_not_hidden():
    boxes = np.array([[0.1, 0, 0.17, 1, 1.0], [0.1, 0, 0.15, 1, 1.0], [0.1, 0, 0.5, 1, 0.4]])
    assert np.array_equal(driving.in_sight(boxes), boxes[:1, :4])


# -- light -------------------------------------------------------------------------------------

def test_headlights_light_a_cone_on_the_road_and_only_at_night():
    night, day = (window_of(Scene(4, night=dark, traffic=0), 1.0) for dark in (True, False))
    z, x = np.array([8.0, 8.0, 8.0, 60.0]), np.array([0.0, 6.0, -6.0, 0.0])
    ahead, right, left, far = night.light_at(z, x).sum(-1)
    assert ahead > 3 * right and np.isclose(right, left) and ahead > 3 * far
    assert np.array_equal(day.light_at(z, x), day.scene.light)


@pytest.mark.parametrize("oncoming", [0, 1])
def test_rear_lights_are_red_and_headlights_white_at_night(oncoming):
    """On a black car outside of the ego car's own beam, at the middle of the left lamp."""
    scene = scene_with((10.0, -3.5, SEDAN, BLACK, oncoming), night=True)
    frame = scene.render([1.0], 128)[0].astype(int)
    x0, y0, x1, y1, _ = scene.boxes(1.0)[0] * (256, 128, 256, 128, 1)
    u, v = renderer.GLOWS["front" if oncoming else "rear"].positions[0]
    red, green, blue = frame[int(y0 + v * (y1 - y0)), int(x0 + u * (x1 - x0))]
    assert red > 200
    assert blue > 170 if oncoming else max(green, blue) < 0.5 * red


@pytest.mark.parametrize("night, name", [(True, "house at night"), (False, "house")])
def test_windows_of_houses_are_lit_at_night(night, name):
    window = window_of(Scene(4, night=night, traffic=0), 1.0)
    found = window.roadside()
    houses = [sprite for kind, sprite in zip(found.names, found.sprites, strict=True)
              if kind == "house"]
    assert houses and all(any(house is sprite for sprite in sprites()[name]) for house in houses)


def test_paints_differ_from_the_road():
    """Every paint's brightness, or a colour in it, is far from that of asphalt by day."""
    asphalt = 0.36
    assert (np.abs(PAINT - asphalt).max(-1) > 0.2).all()


# -- labels ------------------------------------------------------------------------------------

def test_traffic_and_night_are_as_requested_and_labels_say_so():
    empty, busy = Scene(2, night=False, traffic=0), Scene(2, night=True, traffic=1)
    times = np.arange(8) / 1.875
    assert empty.labels(times)["cars"].tolist() == [0] * 8
    assert not empty.labels(times)["night"].any() and busy.labels(times)["night"].all()
    assert busy.labels(times)["cars"].mean() > 1
    assert busy.render(times[:1], 32).mean() < 0.6 * empty.render(times[:1], 32).mean()
    nights = np.mean([Scene(seed).night for seed in range(60)])
    assert 0.2 < nights < 0.6 and min(Scene(seed).traffic for seed in range(20)) == 0


def test_labels_count_cars_up_to_four_or_more():
    assert driving.LABEL_NAMES == (("light", ("day", "night")),
                                   ("cars", ("0", "1", "2", "3", "4 or more")))
    boxes = [np.zeros((n, 4)) for n in range(7)]
    labels = driving.DrivingClip(3).labels(boxes)
    assert labels.dtype == torch.int64 and labels[:, 1].tolist() == [0, 1, 2, 3, 4, 4, 4]


def test_clips_of_dark_scenes_are_labelled_night():
    clips = driving.clips("held_out", 12, length=2)
    nights = [int(Scene(clip.seed).night) for clip in clips]
    assert [clip.labels()[:, 0].tolist() for clip in clips] == [[night] * 2 for night in nights]
    assert set(nights) == {0, 1}
    brightness = torch.stack([clip.frames[0].float().mean() for clip in clips])
    dark = torch.tensor(nights, dtype=torch.bool)
    assert brightness[dark].max() < brightness[~dark].min()


def test_the_number_of_cars_is_counted_in_every_frame():
    """Against boxes counted by hand, frame for frame, in clips in which the number changes."""
    changing = 0
    for clip in driving.clips("train", 12, length=8):
        scene, expected = Scene(clip.seed), []
        for k in range(8):
            boxes = scene.boxes(k / 1.875)
            wide = boxes[:, 2] - boxes[:, 0] >= 8 / 128
            expected.append(min(4, int((wide & (boxes[:, 4] >= 0.5)).sum())))
        assert clip.labels()[:, 1].tolist() == expected
        assert [len(boxes) for boxes in clip.boxes] == scene.labels(clip.times)["cars"].tolist()
        changing += len(set(expected)) > 1
    assert changing >= 4


def test_labels_of_a_scene_are_those_of_its_times():
    times = np.array([0.0, 2.0, 7.5])
    scene = BUSY[0]
    labels = scene.labels(times)
    assert np.array_equal(labels["speed"], scene.speed(times))
    assert np.array_equal(labels["steering"], scene.steering(times))
    cars = [len(driving.in_sight(scene.boxes(time))) for time in times]
    assert labels["cars"].tolist() == cars


def test_captions_say_what_the_labels_say_in_several_wordings():
    day, night = Scene(2, night=False, traffic=0), BUSY[1]
    of_day = [day.caption(1.0, wording) for wording in range(12)]
    of_night = [night.caption(1.0, wording) for wording in range(12)]
    assert all("empty" in text for text in of_day)
    assert not any(word in text for text in of_day for word in ("night", "dark", "sunset"))
    assert all("car" in text or "crowded" in text for text in of_night)
    assert len(set(of_night)) >= 6


# -- a set of clips ----------------------------------------------------------------------------

def test_splits_never_meet():
    assert driving.seeds("train", 2, 5) == [5, 6]
    assert driving.seeds("held_out", 2, 5) == [1_000_005, 1_000_006]
    assert driving.seeds("classifiers", 2, 5) == [2_000_005, 2_000_006]
    splits = [set(driving.seeds(split, 1000)) | set(driving.seeds(split, 5, 999_995))
              for split in driving.SPLITS]
    assert len(set.union(*splits)) == sum(map(len, splits))
    for split in driving.SPLITS:
        found = [clip.seed for clip in driving.clips(split, 3, first=7)]
        assert found == driving.seeds(split, 3, 7)


@pytest.mark.parametrize("call, message", [
    (lambda: driving.seeds("test", 3), "splits are train"),
    (lambda: driving.seeds("train", 2, 999_999), "a million"),
    (lambda: driving.seeds("train", 2, -1), "a million"),
    (lambda: Scene(0, traffic=2), "traffic lies in 0"),
    (lambda: BUSY[0].render([-1.0]), "begins at time 0"),
    (lambda: BUSY[0].render([0.0], 4), "at least 8 high"),
    (lambda: BUSY[0].render([0.0], 64, crop=(40, 0, 32, 32)), "crop lies inside")])
def test_invalid_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_clip_is_its_scene_at_key_frames_and_renders_nothing_until_frames_are_read(monkeypatch):
    (clip,) = driving.clips("held_out", 1, 3, 32, first=7)
    assert clip.seed == 1_000_007 and clip.name == "driving/1000007-3x32"
    expected = Scene(1_000_007).render([0, 1 / 1.875, 2 / 1.875], 32)
    assert np.array_equal(clip.frames, expected)
    later = driving.DrivingClip(7, 3, 32, 30.0, start=2.5)
    assert later.name == "driving/0000007-3x32-30-2.5"
    assert np.allclose(later.times, [2.5, 2.5 + 1 / 30, 2.5 + 2 / 30])
    monkeypatch.setattr(Scene, "render", None)
    assert clip.labels().shape == (3, 2) and len(clip.boxes) == 3


def test_the_summary_counts_light_and_cars():
    text = driving.summary(6)
    assert "light: day (" in text and "4 or more (" in text and "held_out" in text
    labels = torch.cat([clip.labels() for clip in driving.clips("train", 6)])
    assert f"0 ({float((labels[:, 1] == 0).float().mean()):.0%})" in text
