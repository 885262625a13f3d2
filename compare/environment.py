# SPDX-License-Identifier: Apache-2.0
"""What a run was made on: figures of two machines are not comparable, nor of two versions."""

import contextlib
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Final

from compare.images import CHECKOUT
from compare.targets import QSD
from harness.guest import QEMU

CPU: Final = Path("/sys/devices/system/cpu")
LIMIT: Final = 10.0  # seconds for a program to tell its version
MIB_PER_KIB: Final = 1 / 1024


def facts() -> dict[str, str]:
    """Everything that bears on the figures, in the report's order."""
    return {
        "processor": _first(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo")),
        "processors": f"{os.cpu_count()}",
        "threads of CPU 0's core": _cpu("cpu0/topology/thread_siblings_list"),
        "frequency governor": _cpu("cpu0/cpufreq/scaling_governor"),
        "virtualisation": _virtualisation(),
        "memory": f"{_memory_mib()} MiB",
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "file system of the checkout": _filesystem(),
        "blkd": _said("git", "-C", f"{CHECKOUT}", "describe", "--always", "--dirty"),
        "qemu-storage-daemon": _version(QSD),
        "QEMU": _version(QEMU),
        "fio": _version("fio"),
        "liburing": _said("dpkg-query", "--show", "--showformat=${Version}", "liburing2"),
        "Python": platform.python_version(),
        "mitigations": _mitigations(),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _text(path: str | Path) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _cpu(name: str) -> str:
    return _text(CPU / name) or "not shown"


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else "unknown"


def _said(*words: str) -> str:
    """What a program prints, or that it cannot be asked."""
    try:
        done = subprocess.run(  # noqa: S603 - the words are this file's own
            words, check=True, capture_output=True, text=True, timeout=LIMIT
        )
    except (OSError, subprocess.SubprocessError):
        return "not installed"
    return done.stdout.strip()


def _version(program: str) -> str:
    found = re.search(r"\d+(\.\d+)+", said := _said(program, "--version"))
    return found[0] if found else said


def _virtualisation() -> str:
    flags = _first(r"^flags\s*:\s*(.+)$", _text("/proc/cpuinfo")).split()
    return "a virtual machine" if "hypervisor" in flags else "none seen"


def _memory_mib() -> int:
    return round(int(_first(r"^MemTotal:\s+(\d+) kB$", _text("/proc/meminfo"))) * MIB_PER_KIB)


def _filesystem() -> str:
    return _said("stat", "--file-system", "--format=%T", f"{CHECKOUT}")


def _mitigations() -> str:
    known = sorted((CPU / "vulnerabilities").glob("*"))
    names = [path.name for path in known if _text(path).startswith("Mitigation")]
    return ", ".join(names) or "none"
