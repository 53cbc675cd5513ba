"""Which size an image is trained at, for every size and setting that can occur."""

from __future__ import annotations

import pytest
from PIL import Image

from lorakit.config import ConfigError
from lorakit.data import DataConfig, buckets
from lorakit.randomness import rng

SETTINGS = {
    "kohya's": DataConfig(),
    "upscaling": DataConfig(bucket_no_upscale=False),
    "fine": DataConfig(resolution=768, min_bucket_reso=64, max_bucket_reso=2048, bucket_reso_steps=8),
    "sdxl": DataConfig(resolution=1024, min_bucket_reso=512, max_bucket_reso=2048),
    "narrow": DataConfig(resolution=512, min_bucket_reso=448, max_bucket_reso=576),
    "tiny": DataConfig(resolution=64, min_bucket_reso=32, max_bucket_reso=128, bucket_reso_steps=32),
    "square": DataConfig(enable_bucket=False, resolution=200),
}


def images(count: int = 400) -> list[tuple[int, int]]:
    random = rng("sizes of images")
    found = [(1, 1), (1, 5000), (5000, 1), (512, 512), (511, 584), (600, 440), (3000, 100), (63, 64), (10_000, 10_000)]
    return found + [(int(2 ** random.uniform(4, 13)), int(2 ** random.uniform(4, 13))) for _ in range(count)]


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_a_training_image_has_whole_steps_and_at_most_the_area_and_is_cut_out_of_the_resized_image(config):
    step = config.bucket_reso_steps if config.enable_bucket else 8
    for width, height in images():
        fit = buckets.fit(width, height, config)
        assert fit.size[0] % step == fit.size[1] % step == 0 < min(fit.size), (width, height, fit)
        assert fit.size[0] * fit.size[1] <= config.resolution**2, (width, height, fit)
        assert max(fit.size) <= (config.max_bucket_reso if config.enable_bucket else config.resolution)
        for side, resized, left in zip(fit.size, fit.resized, fit.crop, strict=True):
            assert 0 <= left and left + side <= resized, (width, height, fit)
            assert abs(resized - side - 2 * left) <= 1, "the cut is in the middle"
        assert fit.resized[0] == fit.size[0] or fit.resized[1] == fit.size[1], "no more is cut off than needed"
        scale = max(fit.size[0] / width, fit.size[1] / height)
        assert abs(fit.resized[0] - width * scale) <= 0.5 and abs(fit.resized[1] - height * scale) <= 0.5


@pytest.mark.parametrize("name", ["kohya's", "fine", "sdxl", "narrow", "tiny"])
def test_no_image_is_enlarged(name):
    config = SETTINGS[name]
    for width, height in images():
        if min(width, height) >= config.bucket_reso_steps:
            fit = buckets.fit(width, height, config)
            assert fit.resized[0] <= width and fit.resized[1] <= height, (width, height, fit)


@pytest.mark.parametrize("name", ["kohya's", "upscaling", "fine", "sdxl", "narrow", "tiny"])
def test_buckets_lie_within_the_limits_in_both_orientations_and_are_use_the_area(name):
    config = SETTINGS[name]
    found = buckets.bucket_sizes(config)
    assert {(height, width) for width, height in found} == set(found) and len(set(found)) == len(found)
    for width, height in found:
        assert config.min_bucket_reso <= min(width, height) and max(width, height) <= config.max_bucket_reso
        longer, shorter = max(width, height), min(width, height)
        assert longer * (shorter + config.bucket_reso_steps) > config.resolution**2 or longer == config.max_bucket_reso


@pytest.mark.parametrize("name", ["kohya's", "upscaling", "fine", "sdxl"])
def test_a_large_image_goes_to_the_bucket_of_the_nearest_shape(name):
    config = SETTINGS[name]
    for width, height in images():
        size = buckets.fit(width, height, config).size
        if size in buckets.bucket_sizes(config) and (not config.bucket_no_upscale or min(width, height) >= 2048):
            off = abs(size[0] / size[1] - width / height)
            assert all(off <= abs(w / h - width / height) for w, h in buckets.bucket_sizes(config)), (
                width,
                height,
                size,
            )


# what kohya's scripts make of 512 px, 256 to 1024 in steps of 64: these, the square, and these turned round
KOHYA = {(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)}


def test_our_buckets_are_kohyas():
    assert set(buckets.bucket_sizes(DataConfig())) == KOHYA | {(512, 512)} | {
        (height, width) for width, height in KOHYA
    }


@pytest.mark.parametrize(
    ("image", "size"),
    [
        ((1024, 1024), (512, 512)),
        ((1920, 1080), (640, 384)),
        ((1080, 1920), (384, 640)),
        ((832, 1216), (384, 640)),
        ((512, 512), (512, 512)),
        ((500, 500), (448, 448)),  # smaller than its bucket: its own size in whole steps
        ((300, 200), (256, 192)),
        ((40, 2000), (64, 1024)),  # shorter than a step: the only case in which something is enlarged
    ],
)
def test_common_images_go_where_kohyas_scripts_put_them(image, size):
    assert buckets.fit(*image, DataConfig()).size == size


def test_without_buckets_everything_is_cut_to_the_square():
    assert buckets.fit(300, 900, SETTINGS["square"]) == buckets.Fit((200, 200), (200, 600), (0, 200))


def test_the_middle_of_an_image_is_kept_and_a_mirrored_one_is_its_mirror_image():
    image = Image.new("RGB", (192, 64), "red")
    image.paste("blue", (64, 0, 96, 64))
    image.paste("green", (96, 0, 128, 64))
    how = buckets.fit(192, 64, DataConfig(enable_bucket=False, resolution=64))
    made, mirrored = buckets.resize_and_crop(image, how), buckets.resize_and_crop(image, how, flip=True)
    assert [made.getpixel((x, 9)) for x in (0, 31, 32, 63)] == [(0, 0, 255)] * 2 + [(0, 128, 0)] * 2
    assert mirrored.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes() == made.tobytes() != mirrored.tobytes()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"min_bucket_reso": 1024, "max_bucket_reso": 512}, ("min_bucket_reso", "1024", "512")),
        ({"resolution": 500}, ("resolution", "500", "multiple of bucket_reso_steps", "64")),
        ({"resolution": 192}, ("resolution", "192", "min_bucket_reso", "256")),
        ({"resolution": 2048}, ("resolution", "2048", "max_bucket_reso", "1024")),
        ({"bucket_reso_steps": 20}, ("bucket_reso_steps", "20", "multiple of 8")),
        ({"resolution": 510, "enable_bucket": False}, ("resolution", "510", "multiple of 8")),
    ],
)
def test_bucket_settings_that_contradict_each_other_are_refused(settings, names):
    with pytest.raises(ConfigError) as caught:
        DataConfig(**settings)
    assert all(name in str(caught.value) for name in names), caught.value


@pytest.mark.parametrize(("resolution", "advice"), [(192, "lower min_bucket_reso"), (1088, "raise max_bucket_reso")])
def test_a_resolution_outside_of_the_bucket_range_says_which_setting_to_change(resolution, advice):
    with pytest.raises(ConfigError, match=f"{advice} to {resolution} or"):
        DataConfig(resolution=resolution)
