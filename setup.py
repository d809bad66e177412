"""Says what to install where there is no C++ compiler, before the build of aevmod fails without saying so."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

COMPILERS = (os.environ.get("CXX"), "c++", "g++", "clang++", "cl")


def aevmod_is_installed() -> bool:
    """Whether aevmod is already where this installation goes; then nothing is built."""
    return any(Path(sysconfig.get_path("platlib")).glob("aevmod*"))


if not aevmod_is_installed() and not any(name and shutil.which(name) for name in COMPILERS):
    sys.exit(
        "pykinml-func needs a C++ compiler: its dependency aevmod is built from source, and none of c++, g++, "
        "clang++ or $CXX was found. Install one and try again: `apt install g++` (Debian, Ubuntu), `dnf install "
        "gcc-c++` (Fedora, RHEL), `xcode-select --install` (macOS), `conda install -c conda-forge cxx-compiler`, or "
        "`module load gcc` on a cluster."
    )

setup()
