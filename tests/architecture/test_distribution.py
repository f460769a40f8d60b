import re
import subprocess
import sys
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

from shared.infrastructure import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_string(archive.read(name).decode())


def test_the_base_install_brings_little(metadata: Message) -> None:
    required = metadata.get_all("Requires-Dist", [])
    base = {re.split(r"[\[<>=~! ;]", line)[0] for line in required if "extra ==" not in line}
    of_httpx = {"certifi", "hpack"}  # what it stands on itself
    assert base - of_httpx == {"httptools", "httpx", "tenacity", "pydantic", "numpy"}
    assert all(">=" in line for line in required if "morgan-sdk" not in line)


def test_the_extras_have_the_promised_names(metadata: Message) -> None:
    extras = set(metadata.get_all("Provides-Extra", []))
    assert extras >= {"embedding", "onnx", "torch", "fastembed", "redis", "otel", "server", "cli"}


def test_name_version_and_licence_are_right(metadata: Message) -> None:
    assert metadata["Name"] == "morgan-sdk"
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "MIT"


def test_the_wheel_holds_namespace_packages_with_their_types_and_works(
    wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert "shared/__init__.py" not in names
    assert "services/__init__.py" not in names
    for package in ("shared/infrastructure", "shared/models", "services/llm", "services/embedding"):
        assert f"{package}/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "examples/"))]
    code = (
        "import services.embedding, services.llm\n"
        "from shared.infrastructure import EnhancedHTTPClient\n"
        "print(services.llm.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path))
