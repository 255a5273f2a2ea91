"""What a run asks of a Ray cluster, and what is said if the cluster does not have it."""

from typing import Any

import pytest

from psys.errors import PsysError
from psys.training import TrainingConfig, train
from psys.training.on_ray import Demand


def demand(**settings: Any) -> Demand:
    return Demand(TrainingConfig(ray_address="a:1", **settings))


def test_each_process_has_a_bundle_of_its_own() -> None:
    wanted = demand(workers=2, servers=3, threads=4, gpus_per_worker=0.5)
    assert wanted.bundles == [{"CPU": 4.0, "GPU": 0.5}] * 2 + [{"CPU": 1.0}] * 2
    own = [wanted.bundle_of("worker", 0), wanted.bundle_of("worker", 1)]
    own += [wanted.bundle_of("server", 1), wanted.bundle_of("server", 2)]
    assert own == [0, 1, 2, 3]
    wanted.check("the cluster", {"CPU": 10.0, "GPU": 1.0, "memory": 1e9})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 3}, "the cluster has 2 CPU: 3 --workers of 1 CPU need 3 CPU"),
        ({"workers": 2, "servers": 2}, "2 --workers of 1 CPU and 1 --servers of 1 CPU need 3 CPU"),
        ({"workers": 2, "gpus_per_worker": 1}, "2 --workers of 1 CPU and 1 GPU need 2 CPU and 2 GPU"),
    ],
)
def test_cluster_that_is_too_small_is_said_to_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PsysError, match=message):
        demand(**settings).check("the cluster", {"CPU": 2.0})


def test_number_of_workers_must_be_chosen() -> None:
    with pytest.raises(PsysError, match="--ray-address needs --workers"):
        train(TrainingConfig(ray_address="a:1"))
