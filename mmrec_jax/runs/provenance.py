"""The provenance of a run: command, machine, versions and revision of the code."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def provenance() -> dict:
    """The provenance of this process, as a JSON object."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "revision": _revision(),
        "machine": _machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _machine() -> str:
    devices = jax.devices()
    parts = [f"{os.cpu_count()} cores", _processor()]
    if devices[0].platform != "cpu":
        parts.insert(0, f"{len(devices)} x {devices[0].device_kind}")
    return ", ".join(part for part in [*parts, platform.system()] if part)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _revision() -> str:
    """The git revision of this code, with a + if files have changed; '' outside git."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
