"""One wheel for all Pythons: build it, look at it, and try it in a clean environment of each Python that is here.

``python tests/wheels/check.py FOLDER`` from the repository's root; works in FOLDER. Exit status 1: something failed.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TAG = "-cp310-abi3-"
MOST_BYTES = 3_000_000  # with the C library: its text and its archive are 0.8 MB of it
SMOKE = Path(__file__).with_name("smoke.py").resolve()


def build(folder: Path) -> Path:
    """The wheel that ``pip wheel .`` makes, checked for its name and size."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), "."], check=True)
    (wheel,) = folder.glob("*.whl")
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size:,} bytes")
    assert TAG in wheel.name, f"expected a wheel tagged {TAG.strip('-')}"
    assert size <= MOST_BYTES, f"the wheel has {size:,} bytes, allowed {MOST_BYTES:,}"
    return wheel


def find(version: str) -> str | None:
    """A Python of this version that runs: on the path, or among pyenv's."""
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    for candidate in (f"python{version}", *sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python{version}"))):
        found = shutil.which(candidate)  # the command may exist and not run
        if found and subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return found
    return None


def smoke(python: str, wheel: Path, folder: Path) -> None:
    """Install the wheel with its dependencies only, and run smoke.py."""
    subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
    inside = folder / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run([inside, "-m", "pip", "install", "--quiet", str(wheel)], check=True, env=clean)
    subprocess.run([inside, "-W", "ignore::DeprecationWarning", SMOKE], check=True, env=clean, cwd=folder, timeout=300)


def main(folder: Path) -> int:
    wheel = build(folder)
    tried, absent, failed = [], [], []
    for version in PYTHONS:
        python = find(version)
        if python is None:
            absent.append(version)
            continue
        try:
            smoke(python, wheel, folder / version)
        except subprocess.SubprocessError as error:
            print(f"Python {version}: {error}", file=sys.stderr)
            failed.append(version)
        tried.append(version)
    print(f"skipped, not on this machine: {', '.join(absent) or 'none'}")
    print(f"{len(tried) - len(failed)} passed, {len(failed)} failed, {len(absent)} skipped")
    return 1 if failed or not tried else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
