"""Actors that die: by the kernel's hand at any moment, or of an image that none survives."""

import os
from typing import Any

import numpy as np
import psutil
import pytest

from psys.data.sample import read_sample
from psys.segment.actors import Pool, ray_session
from psys.segment.task import Failure, ImageTask, Recipe, prepare_images

KILLS = 1


class Deadly:
    """An image that ends whatever process it comes to."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [*read_sample().test.images[:40]]


def actor_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name().startswith("ray::Segmenter")]


def test_killed_actors_are_replaced_and_a_crashing_image_is_a_failure(images) -> None:
    recipe = Recipe(32)
    deadly: Any = Deadly()
    shards = {str(first): ImageTask(tuple(images[first : first + 5])) for first in range(0, 40, 5)}
    expected = {key: prepare_images(shard, recipe) for key, shard in shards.items()}
    shards["10"] = ImageTask((*images[10:12], deadly, *images[13:15]))
    kills = 0
    results = {}

    with ray_session(2, None) as actors:
        pool = Pool(actors, recipe, print)
        for key, prepared in pool.prepare(iter(shards.items())):
            results[key] = prepared
            if kills < KILLS and (victims := actor_processes()):
                victims[0].kill()
                kills += 1

    assert kills == KILLS
    assert pool.deaths >= KILLS
    assert sorted(results) == sorted(shards)
    for key, prepared in results.items():
        kept = [row for row in range(5) if (key, row) != ("10", 2)]
        assert prepared.rows.tolist() == kept
        np.testing.assert_array_equal(prepared.images, expected[key].images[kept])
        np.testing.assert_array_equal(prepared.masks, expected[key].masks[kept])
        np.testing.assert_array_equal(prepared.quality, expected[key].quality[kept])
    assert results["10"].failures == (Failure(2, "2 actors died while they prepared it", permanent=False),)
