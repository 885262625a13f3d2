# SPDX-License-Identifier: Apache-2.0
"""Only what pyproject.toml cannot say: the C extensions."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

RELEASED = {
    "blkd.ring": "src/ring.pyx",
    "blkd.block": "src/block.pyx",
    "blkd.network": "src/network.pyx",
    "blkd.vsock": "src/vsock.pyx",
    "blkd.sandbox": "src/sandbox.pyx",
    "blkd.loadgen.native": "src/loadgen.pyx",
}
"""Extensions, and the source of each."""
PROBES = {
    "blkd.probes": "src/probes.pyx",
    "blkd.figures_probes": "src/figures_probes.pyx",
    "blkd.limits_probes": "src/limits_probes.pyx",
    "blkd.loadgen_probes": "src/loadgen_probes.pyx",
    "blkd.vsock_probes": "src/vsock_probes.pyx",
    "blkd.vsock_load": "src/vsock_load.pyx",
    "blkd.hot_loop": "src/hot_loop.pyx",
    "blkd.late_engine": "tests/engines/late_engine.pyx",
    "blkd.loopback_device": "tests/devices/loopback_device.pyx",
}  # tests call inline functions, and have an engine and a device of their own
WITH_PROBES = os.environ.get("BLKD_PROBES") == "1"
SANITIZE = os.environ.get("BLKD_SANITIZE", "")  # for example "address,undefined"
SANITIZER_FLAGS = [
    f"-fsanitize={SANITIZE}",
    "-fno-sanitize-recover=all",
    # A UBSan runtime that shares ASan's symbols would ignore its own log_path.
    "-static-libubsan",
    "-Wl,--exclude-libs,libubsan.a",
    "-fno-omit-frame-pointer",
    "-fno-wrapv",  # Python's own -fwrapv would hide signed overflow from UBSan
]
FLAGS = SANITIZER_FLAGS if SANITIZE else []


def extension(name: str, source: str) -> Extension:
    """The extension `name`, of this .pyx file."""
    return Extension(
        name,
        sources=[source],
        include_dirs=["src"],
        libraries=["uring"],
        extra_compile_args=["-O2", "-g", "-Wall", "-Wno-unused-function", *FLAGS],
        extra_link_args=FLAGS,
    )


setup(
    ext_modules=cythonize(
        [extension(*each) for each in (RELEASED | (PROBES if WITH_PROBES else {})).items()],
        include_path=["src"],
        build_dir="build/cython",
        nthreads=os.cpu_count() or 1,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
        },
    ),
    options={"build_ext": {"parallel": True}},
)
