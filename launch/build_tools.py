"""What DeepSpeed compiles its own parts with, once, when a run first needs them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

_COMPILE_SECONDS = 60
_PLAIN = "int main() { return 0; }\n"
_ASYNCHRONOUS = """\
#include <libaio.h>
int main() { io_context_t context = 0; return io_setup(1, &context); }
"""


def missing_build_tools() -> list[str]:
    """Names what is missing of a C++ compiler that works, ninja and Python's headers."""
    missing = []
    if not _compiles(_PLAIN):
        missing.append(f"a C++ compiler ({_compiler()})")
    if shutil.which("ninja") is None and not (Path(sys.executable).parent / "ninja").exists():
        missing.append("ninja")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        missing.append("Python.h")
    return missing


def has_asynchronous_io() -> bool:
    """Tells whether programs can be built with libaio, which moves ZeRO states to an NVMe disk."""
    return _compiles(_ASYNCHRONOUS, "-laio")


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def _compiles(source: str, *options: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "program")
        try:
            built = subprocess.run(
                # CXX may hold options of its own, as for every build.
                [*shlex.split(_compiler()), "-x", "c++", "-", "-o", output, *options],
                input=source.encode(),
                capture_output=True,
                timeout=_COMPILE_SECONDS,
                check=False,
            )
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return False
        return built.returncode == 0
