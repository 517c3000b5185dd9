"""Leave to use AMX's tile registers, asked of the kernel in each process that computes.

Linux gives a process the registers when it asks (arch_prctl(2), ARCH_REQ_XCOMP_PERM), and takes the leave back at exec.
oneDNN asks at its first matrix product; vLLM's own kernels for small weights and attention do not (0.32), and where one
of them comes first the worker ends with SIGILL: an embedding model's did, at its first request.
"""

from __future__ import annotations

import ctypes
import platform

from serve.engine.dtype import cpu_flags

_ARCH_PRCTL, _REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18
"""Source: arch/x86/entry/syscalls/syscall_64.tbl, arch/x86/include/uapi/asm/prctl.h, asm/fpu/types.h of Linux 5.16."""


def ask() -> bool:
    """Asks for the registers, where the CPU has them.

    Returns:
        Whether this process may use them.
    """
    if platform.machine() != "x86_64" or "amx_tile" not in cpu_flags():
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0
