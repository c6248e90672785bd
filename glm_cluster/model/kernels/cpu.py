"""What this host's processor is and can do, as the kernel tells it. Knows no compiler and runs nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

_FIELDS = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part", "Features")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """One processor: `description` differs wherever code compiled for it may not run on another."""

    description: str
    features: frozenset[str]  # by the kernel's names: avx512f, avx512_bf16, ...

    @classmethod
    def of_host(cls, cpuinfo: Path = Path("/proc/cpuinfo")) -> Self:
        """The host's first processor; without a description, and without features, where the kernel tells none."""
        try:
            text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        lines = (line.partition(":") for line in text.split("\n\n")[0].split("\n"))
        known = {name.strip(): value.strip() for name, _, value in lines if name.strip() in _FIELDS}
        features = known.get("flags") or known.get("Features") or ""
        return cls(description=repr(sorted(known.items())), features=frozenset(features.split()))
