"""The memory of a process and all below it, for benchmarks."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psutil
from process_tree import tree


class MemoryWatch:
    """The peak memory of a process and all below it, and of the GPUs, in bytes."""

    def __init__(self, pid: int, gpu_mib: Callable[[], list[int]] = list) -> None:
        """Args are the process, and what says how much each GPU has in use, in MiB."""
        self.peak_bytes = 0
        self.peak_gpu_bytes = 0
        """Of the fullest GPU, whoever takes it."""
        self._gpu_mib = gpu_mib
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Stops watching and returns the peak."""
        self._stop.set()
        self._thread.join()
        return self.peak_bytes

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            total = 0
            processes = tree(self._pid)
            if not processes:
                return
            for process in processes:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)
            self.peak_gpu_bytes = max(self.peak_gpu_bytes, *(mib << 20 for mib in self._gpu_mib()), 0)
