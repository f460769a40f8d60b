"""Make `.venv` hold a locked set of packages: `python3 scripts/bootstrap.py demo|test`.

A run that finds the set installed ends at once; changed locks upgrade the environment in place.
Only the standard library is used, and any Python 3 can read this file, to say when it is too old.
"""

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
VENV = ROOT / ".venv"
UNFINISHED = VENV / "unfinished"
OLDEST = (3, 11)

LOCKS = {"demo": ("demo.txt", "models.txt"), "test": ("test.txt", "models.txt")}
# The locks agree with each other, so the larger set contains the smaller one.
CONTAINS = {"demo": ("demo",), "test": ("demo", "test")}


def main() -> int:
    parser = argparse.ArgumentParser(description="Install a locked set of packages into .venv.")
    parser.add_argument("set", choices=sorted(LOCKS))
    wanted = parser.parse_args().set
    digest = requirements_digest()
    if stamp(wanted).is_file() and stamp(wanted).read_text() == digest:
        return 0
    try:
        make_environment()
        install(wanted, digest)
    except BootstrapError as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        return 1
    return 0


class BootstrapError(Exception):
    """The environment cannot be made; the message says what to do."""


def requirements_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(REQUIREMENTS.glob("*.txt")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def stamp(name: str) -> Path:
    return VENV / f"installed-{name}"


def make_environment() -> None:
    """Create the environment if there is none, or only what a killed run left of one."""
    if sys.version_info < OLDEST:
        raise BootstrapError(
            f"Python {'.'.join(map(str, OLDEST))} or newer is needed, this is "
            f"{sys.version.split()[0]} ({sys.executable}); try: make PYTHON=python3.11"
        )
    if (VENV / "bin" / "python").exists() and not UNFINISHED.exists():
        return
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise BootstrapError(
            "this Python cannot make virtual environments; on Debian and Ubuntu: "
            f"apt-get install python3.{sys.version_info.minor}-venv"
        )
    print("creating .venv", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir()
    UNFINISHED.touch()
    if subprocess.run([sys.executable, "-m", "venv", VENV], check=False).returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        raise BootstrapError("python -m venv failed, see above")


def install(name: str, digest: str) -> None:
    """Install a set; whoever is killed on the way leaves the marker `unfinished` behind."""
    for other in LOCKS:
        if stamp(other).is_file() and stamp(other).read_text() != digest:
            stamp(other).unlink()
    UNFINISHED.touch()
    print(f"installing the {name} packages into .venv", flush=True)
    locks = [f"--requirement={REQUIREMENTS / lock}" for lock in LOCKS[name]]
    pip("--no-deps", "--require-hashes", *locks)
    if name == "test":
        pip(f"--requirement={REQUIREMENTS / 'torch.txt'}")
    for contained in CONTAINS[name]:
        stamp(contained).write_text(digest)
    UNFINISHED.unlink()


def pip(*arguments: str) -> None:
    quietly = ("--quiet", "--quiet", "--disable-pip-version-check")  # errors only
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", *quietly, *arguments]
    status = subprocess.run(command, check=False).returncode
    if status > 0:  # pip's own failure: it downloads first, and rolls back what it changed
        UNFINISHED.unlink()
    if status:
        raise BootstrapError("pip failed, see above")


if __name__ == "__main__":
    sys.exit(main())
