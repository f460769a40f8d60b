import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [
    "shared.infrastructure",
    "shared.infrastructure.resilience",
    "shared.infrastructure.http",
    "shared.infrastructure.balancing",
    "shared.infrastructure.local_embeddings",
    "shared.models",
    "services.llm",
    "services.embedding",
]
HEAVY = ["torch", "onnxruntime", "onnx", "transformers", "sentence_transformers", "fastembed"]
HEAVY += ["tokenizers", "redis", "fastapi", "starlette", "uvicorn", "opentelemetry"]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_names_are_those_of_the_committed_list() -> None:
    listed = (ROOT / "tests/architecture/api.txt").read_text().splitlines()
    found = [
        f"{package}.{name}"
        for package in PACKAGES
        for name in sorted(importlib.import_module(package).__all__)
    ]
    assert found == listed, "write the names to tests/architecture/api.txt if the change is meant"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_pulls_in_nothing_heavy(package: str) -> None:
    loaded = run(f"import sys, {package}; print(sorted(set({HEAVY}) & set(sys.modules)))")
    assert loaded == "[]"


def test_importing_the_infrastructure_needs_none_of_the_optional_packages() -> None:
    blocked = [*HEAVY, "orjson", "prometheus_client", "huggingface_hub", "safetensors"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        f"import importlib\n"
        f"for package in {PACKAGES}:\n"
        f"    module = importlib.import_module(package)\n"
        f"    [getattr(module, name) for name in module.__all__]\n"
        f"print('fine')"
    )
    assert run(code) == "fine"


def test_importing_the_infrastructure_loads_no_room_before_it_is_asked_for() -> None:
    code = (
        "import sys, shared.infrastructure; print('httpx' in sys.modules, 'numpy' in sys.modules)"
    )
    assert run(code) == "False False"


def test_an_unknown_name_is_an_attribute_error() -> None:
    module = importlib.import_module("shared.infrastructure")
    with pytest.raises(AttributeError, match="NoSuchThing"):
        _ = module.NoSuchThing


def test_shared_and_services_are_namespace_packages() -> None:
    for name in ("shared", "services"):
        assert not (ROOT / name / "__init__.py").exists()


def test_only_settings_read_the_environment() -> None:
    readers = [
        str(path.relative_to(ROOT))
        for folder in ("shared", "services")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "settings.py"
        and any(word in path.read_text() for word in ("os.environ", "os.getenv", "getenv("))
    ]
    assert readers == []


def test_no_source_file_is_longer_than_400_lines() -> None:
    long = [
        str(path.relative_to(ROOT))
        for folder in ("shared", "services", "tests", "examples", "benchmarks", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        if len(path.read_text().splitlines()) > 400
    ]
    assert long == []
