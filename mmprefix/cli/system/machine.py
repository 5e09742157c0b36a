"""Machine: cores, instructions, memory and accelerators, by what the system tells; torch is asked on request only."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "sve", "bf16")


def cpu() -> str:
    """Name, cores for this process, and the instructions that matter to products of matrices."""
    text = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.MULTILINE)
    present = [name for name in _INSTRUCTIONS if flags and name in flags[1].split()]
    products = "products of bfloat16" if {"avx512_bf16", "amx_bf16", "bf16"} & set(present) else "no bfloat16 products"
    name = model[1] if model else platform.processor() or platform.machine()
    return f"{name}, {cores()} cores, {' '.join(present) or 'no vector instructions known'}, {products}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> str:
    """Memory of the machine, what is free of it, and a lower limit of this process's control group."""
    sizes = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", _read("/proc/meminfo"), re.M)}
    if "MemTotal" not in sizes:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return f"{pages * size / 2**30:.1f} GiB"
    line = f"{sizes['MemTotal'] / 2**30:.1f} GiB, {sizes.get('MemAvailable', 0) / 2**30:.1f} free"
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit() and int(limit) < sizes["MemTotal"]:
        line += f", limited to {int(limit) / 2**30:.1f}"
    return line


def gpus() -> list[str]:
    """Names and memory of NVIDIA's GPUs by ``nvidia-smi``, or Apple's chip; empty where neither is there."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return ["Apple's GPU (MPS)"]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def torch_devices() -> list[str]:
    """Devices that torch can use, after it is imported: CUDA's with their memory, Apple's, and the CPU."""
    import torch

    from mmprefix.weights.devices import multiplies_bfloat16

    lines = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        size = properties.total_memory / 2**30
        lines.append(f"cuda:{number}: {properties.name}, {size:.1f} GiB, {bf16}, CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        lines.append("mps: Apple's GPU")
    fast = "with" if multiplies_bfloat16() else "without"
    return [*lines, f"cpu: {torch.get_num_threads()} threads, {fast} products of bfloat16"]


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
