"""Actors that are killed, and an image that crashes every actor."""

import os
from typing import Any

import numpy as np
import psutil
import pytest

from psys.data.sample import read_sample
from psys.segment.actors import Pool, ray_session
from psys.segment.task import Failure, ImageTask, Recipe, prepare_images
from tests.support.images import Image, pixels_of

KILLS = 1


class CrashingImage:
    """An image that ends every process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


@pytest.fixture(scope="module")
def images() -> Image:
    return pixels_of(read_sample().test)[:40]


def actor_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name().startswith("ray::Segmenter")]


def test_killed_actors_are_replaced_and_a_crashing_image_is_a_failure(images: Image) -> None:
    recipe = Recipe(32)
    crashing: Any = CrashingImage()
    tasks = {str(first): ImageTask(images[first : first + 5]) for first in range(0, 40, 5)}
    expected = {key: prepare_images(task, recipe) for key, task in tasks.items()}
    tasks["10"] = ImageTask((*images[10:12], crashing, *images[13:15]))
    kills = 0
    results = {}

    with ray_session(2, None) as actors:
        pool = Pool(actors, recipe, print)
        for key, prepared in pool.prepare(iter(tasks.items())):
            results[key] = prepared
            if kills < KILLS and (victims := actor_processes()):
                victims[0].kill()
                kills += 1

    assert kills == KILLS
    assert pool.deaths >= KILLS
    assert sorted(results) == sorted(tasks)
    for key, prepared in results.items():
        kept = [row for row in range(5) if (key, row) != ("10", 2)]
        assert prepared.rows.tolist() == kept
        np.testing.assert_array_equal(prepared.images, np.asarray(expected[key].images)[kept])
        np.testing.assert_array_equal(prepared.masks, np.asarray(expected[key].masks)[kept])
        np.testing.assert_array_equal(prepared.quality, expected[key].quality[kept])
    assert results["10"].failures == (Failure(2, "2 actors died while they prepared it", permanent=False),)
