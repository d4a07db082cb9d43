"""Looks at this machine and this environment the way a run will use them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from launch.build_tools import has_asynchronous_io, missing_build_tools
from launch.console import human_bytes
from launch.local import has_nvidia_gpu, number_of_cores
from launch.mpi import examine_mpi

_GIB = 2**30
_PROBE_SECONDS = 120
_TORCH_PROBE = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda,
                  "hip": torch.version.hip, "gpus": gpus,
                  "gloo": torch.distributed.is_gloo_available(),
                  "bf16": gpus == [] or torch.cuda.is_bf16_supported()}))
"""
_VERSION_PROBE = 'import json, {name}; print(json.dumps({{"version": {name}.__version__}}))'


@dataclass(frozen=True)
class Finding:
    """One row of the examination.

    Attributes:
        name: What was looked at.
        state: ok, warn (works, with a limit), or fail (nothing runs before it is mended).
        value: What was found.
        remedy: What to do; "" where nothing is to be done.
    """

    name: str
    state: Literal["ok", "warn", "fail"]
    value: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain data."""
        return asdict(self)


def examine() -> list[Finding]:
    """Runs every check; those that start a process run side by side.

    Returns:
        The findings, in a fixed order.
    """
    checks: list[Callable[[], Iterable[Finding]]] = [
        _python,
        _torch,
        _deepspeed,
        _transformers,
        _packages,
        _mpi,
        _build_tools,
        _cores_and_memory,
        _disk,
        _shared_memory,
        _working_folder,
    ]
    with ThreadPoolExecutor(max_workers=max(2, min(4, number_of_cores()))) as pool:
        return [
            finding for group in pool.map(lambda check: list(check()), checks) for finding in group
        ]


def _probe(code: str) -> tuple[dict[str, Any] | None, str]:
    """Runs code in a fresh interpreter: a library that crashes must not take the doctor along.

    Returns:
        The last line it printed, as JSON, or None and the reason.
    """
    environment = dict(os.environ)
    if not has_nvidia_gpu():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    try:
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer in {_PROBE_SECONDS} s"
    lines = result.stdout.strip().splitlines()
    if result.returncode == 0 and lines:
        return json.loads(lines[-1]), ""
    said = result.stderr.strip().splitlines()
    return None, said[-1] if said else f"exit code {result.returncode}"


def _python() -> list[Finding]:
    value = f"{platform.python_version()} at {sys.executable}"
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return [Finding("Python", "ok", value)]
    return [Finding("Python", "fail", value, "use Python 3.10, 3.11 or 3.12")]


def _torch() -> list[Finding]:
    found, reason = _probe(_TORCH_PROBE)
    if found is None:
        remedy = "pip install -e . -c constraints.txt"
        return [Finding("torch", "fail", f"does not import: {reason}", remedy)]
    gpus, build = found["gpus"], "CPU build"
    if found["cuda"]:
        build = f"CUDA {found['cuda']} build"
    elif found["hip"]:
        build = f"ROCm {found['hip']} build"
    rows = [Finding("torch", "ok", f"{found['version']}, {build}")]
    if not found["gloo"]:
        rows.append(
            Finding("gloo", "fail", "missing from this torch", "install torch from its own wheels")
        )
    if gpus:
        names = ", ".join(sorted(set(gpus)))
        state: Literal["ok", "warn"] = "ok" if found["bf16"] else "warn"
        remedy = "" if found["bf16"] else "no bf16 on it: set train.precision: fp32"
        rows.append(Finding("devices", state, f"{len(gpus)} x {names}", remedy))
    elif has_nvidia_gpu():
        remedy = "install a CUDA build of torch 2.13 that fits the driver (nvidia-smi names it)"
        rows.append(Finding("devices", "warn", "an NVIDIA GPU that torch cannot use", remedy))
    elif found["cuda"]:
        remedy = "the CPU build of torch is 2 GB smaller; nothing else is wrong"
        rows.append(Finding("devices", "warn", "CPU, with a CUDA build of torch", remedy))
    else:
        rows.append(Finding("devices", "ok", f"CPU: {_processor_name()}"))
    return rows


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _deepspeed() -> list[Finding]:
    found, reason = _probe(_VERSION_PROBE.format(name="deepspeed"))
    if found is None:
        remedy = "pip install -e . -c constraints.txt"
        return [Finding("DeepSpeed", "fail", f"does not import: {reason}", remedy)]
    return [Finding("DeepSpeed", "ok", str(found["version"]))]


def _transformers() -> list[Finding]:
    found, reason = _probe(_VERSION_PROBE.format(name="transformers"))
    if found is None:
        remedy = 'for spade export and generate: pip install -e ".[hf]" -c constraints.txt'
        return [Finding("transformers", "warn", f"does not import: {reason}", remedy)]
    return [Finding("transformers", "ok", str(found["version"]))]


def _packages() -> list[Finding]:
    """The small libraries, by their installed versions."""
    from importlib.metadata import PackageNotFoundError, version

    names = ("sentencepiece", "webdataset", "tensorboard", "pydantic", "xxhash", "safetensors")
    found, missing = [], []
    for name in (*names, "pyarrow", "matplotlib", "psutil"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        remedy = "pip install -e . -c constraints.txt"
        return [Finding("libraries", "fail", f"missing: {', '.join(missing)}", remedy)]
    return [Finding("libraries", "ok", ", ".join(found))]


def _mpi() -> list[Finding]:
    mpi = examine_mpi()
    if not mpi.problem:
        return [Finding("MPI", "ok", f"{mpi.library} by {mpi.mpiexec}, 2 ranks meet")]
    # Nothing depends on it: shards are then written by one process.
    found, _, remedy = mpi.problem.partition(": ")
    return [Finding("MPI", "warn", found, remedy or "shards are written by one process meanwhile")]


def _build_tools() -> list[Finding]:
    """What is compiled once, when a run first needs it."""
    missing = missing_build_tools()
    if missing:
        remedy = (
            "ranks on CPUs and offload compile parts at their first start: "
            "apt install g++ python3-dev; pip install ninja"
        )
        return [Finding("compiler", "warn", f"missing: {', '.join(missing)}", remedy)]
    rows = [Finding("compiler", "ok", "C++, ninja and Python's headers")]
    if has_asynchronous_io():
        return [*rows, Finding("NVMe offload", "ok", "libaio")]
    remedy = "only offload to NVMe needs it: apt install libaio-dev"
    return [*rows, Finding("NVMe offload", "warn", "no libaio to build with", remedy)]


def memory_bytes() -> int:
    """Memory this process may use: the machine's, or less where a container is limited."""
    import psutil

    total = int(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        return min(total, int(limit.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return total


def _cores_and_memory() -> list[Finding]:
    cores, memory = number_of_cores(), memory_bytes()
    rows = [Finding("cores", "ok", str(cores))]
    if cores < 2:
        rows = [Finding("cores", "warn", "1", "the quickstart takes twice as long")]
    if memory < 3 * _GIB:
        remedy = "two ranks of the smallest model need about 3 GiB: use --processes 1"
        return [*rows, Finding("memory", "warn", human_bytes(memory), remedy)]
    return [*rows, Finding("memory", "ok", human_bytes(memory))]


def _disk() -> list[Finding]:
    usage = shutil.disk_usage(Path.cwd())
    value = f"{human_bytes(usage.free)} free of {human_bytes(usage.total)} at {Path.cwd()}"
    if usage.free < 2 * _GIB:
        return [Finding("disk", "warn", value, "a quickstart writes about 1 GiB: make room")]
    return [Finding("disk", "ok", value)]


def _shared_memory() -> list[Finding]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return [Finding("shared memory", "ok", "no /dev/shm on this system")]
    usage = shutil.disk_usage(folder)
    value = f"{human_bytes(usage.free)} free of {human_bytes(usage.total)} in /dev/shm"
    if usage.free < 256 * 2**20:
        remedy = "ranks exchange data there: start the container with --shm-size=1g"
        return [Finding("shared memory", "warn", value, remedy)]
    return [Finding("shared memory", "ok", value)]


def _working_folder() -> list[Finding]:
    try:
        with tempfile.NamedTemporaryFile(dir=Path.cwd()):
            pass
    except OSError as error:
        remedy = "run from a folder you may write to, or give --out"
        return [Finding("folder", "fail", f"{Path.cwd()}: {error.strerror}", remedy)]
    return [Finding("folder", "ok", f"{Path.cwd()} can be written")]
