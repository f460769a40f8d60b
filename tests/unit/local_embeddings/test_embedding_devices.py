import os

import pytest

from shared.infrastructure.local_embeddings import (
    DeviceUnavailableError,
    LocalEmbeddingConfig,
    devices,
)
from shared.infrastructure.local_embeddings.devices import choose_device, usable_cpus


@pytest.mark.parametrize(
    ("requested", "cuda_devices", "chosen"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_device_is_chosen_with_a_reason(requested, cuda_devices, chosen):
    device = choose_device(requested, cuda_devices=cuda_devices, library="torch")
    assert device.name == chosen
    assert device.reason


@pytest.mark.parametrize(("requested", "cuda_devices"), [("cuda", 0), ("cuda:1", 1)])
def test_a_cuda_device_that_is_not_there_is_refused(requested, cuda_devices):
    with pytest.raises(DeviceUnavailableError, match="device='cpu' or 'auto'"):
        choose_device(requested, cuda_devices=cuda_devices, library="torch")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_a_device_that_does_not_exist_is_no_configuration(device):
    with pytest.raises(ValueError, match="device"):
        LocalEmbeddingConfig(device=device)


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 8), ("250000 100000", 3), ("10000 100000", 1), ("?", 8)]
)
def test_the_quota_of_the_container_bounds_the_threads(monkeypatch, tmp_path, quota, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(devices, "_CGROUP_QUOTA", tmp_path / "cpu.max")
    assert usable_cpus() == cpus
