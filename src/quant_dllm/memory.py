"""How much memory a stretch of work took at its peak."""

import contextlib
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory since this object was made.

    Args:
        device_type: ``"cuda"`` measures what torch allocated on the accelerator too.
    """

    def __init__(self, device_type: str = "cpu"):
        self.device_type = device_type
        with contextlib.suppress(OSError):
            RESET.write_text("5")  # Linux: start the high-water mark afresh
        if device_type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()

    @property
    def process(self) -> int | None:
        """Resident memory of the whole process, bytes; ``None`` where the system does not tell."""
        return self.read()

    @staticmethod
    def read() -> int | None:
        """Return the same since the last object was made."""
        with contextlib.suppress(OSError):
            for line in STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        with contextlib.suppress(ImportError):
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return None

    @staticmethod
    def now() -> int | None:
        """Return the resident memory of the process at this moment, bytes."""
        with contextlib.suppress(OSError):
            for line in STATUS.read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        return None

    @property
    def device(self) -> int | None:
        """Memory that torch had allocated on the accelerator, bytes; ``None`` without one."""
        if self.device_type != "cuda":
            return None
        import torch

        return torch.cuda.max_memory_allocated()
