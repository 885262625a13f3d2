# SPDX-License-Identifier: Apache-2.0
"""Only what pyproject.toml cannot say: the C extensions."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

RELEASED = ("ring", "loadgen")
DOORS = ("probes", "loadgen_probes")  # of tests into inline functions
PROBES = os.environ.get("BLKD_PROBES") == "1"
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


def extension(name: str) -> Extension:
    """The extension `blkd.NAME` of src/NAME.pyx."""
    return Extension(
        f"blkd.{name}",
        sources=[f"src/{name}.pyx"],
        include_dirs=["src"],
        libraries=["uring"],
        extra_compile_args=["-O2", "-g", "-Wall", "-Wno-unused-function", *FLAGS],
        extra_link_args=FLAGS,
    )


setup(
    ext_modules=cythonize(
        [extension(name) for name in RELEASED + (DOORS if PROBES else ())],
        include_path=["src"],
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
        },
    )
)
