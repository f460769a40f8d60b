import os

import pytest

from shared.infrastructure.local_embeddings import (
    DeviceUnavailableError,
    LocalEmbeddingConfig,
)
from shared.infrastructure.local_embeddings.devices import choose_device, usable_cpus
from tests.unit.local_embeddings.fake_linux import FakeLinux


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


@pytest.fixture
def linux(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return FakeLinux(tmp_path)


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("max 100000", 8), ("250000 100000", 3), ("10000 100000", 1), ("900000 100000", 8), ("?", 8)],
)
def test_the_quota_of_the_container_bounds_the_threads(linux, quota, cpus):
    linux.version_2("/pod")
    linux.group("pod", cpu__max=quota)
    assert usable_cpus(linux.proc) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [(-1, 8), (250_000, 3), (10_000, 1), (0, 8), ("?", 8)])
def test_so_does_that_of_the_older_interface(linux, quota, cpus):
    linux.version_1("cpu,cpuacct", "/pod")
    linux.group("pod", cpu__cfs_quota_us=quota, cpu__cfs_period_us=100_000)
    assert usable_cpus(linux.proc) == cpus


def test_the_smallest_quota_among_the_parents_counts(linux):
    linux.version_2("/slice/pod/leaf")
    linux.group("slice/pod/leaf", cpu__max="600000 100000")
    linux.group("slice/pod", cpu__max="max 100000")
    linux.group("slice", cpu__max="100000 50000")
    assert usable_cpus(linux.proc) == 2


def test_without_affinity_and_control_groups_all_cpus_count(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cpus(tmp_path) == 6
