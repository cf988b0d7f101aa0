"""What a store tells of its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class VersionInfo:
    """A saved version: number, when (ISO 8601, UTC), bytes, the training record, labels; or what is wrong with it."""

    number: int
    created: str
    size: int
    training: Mapping[str, Any]
    labels: tuple[str, ...] | None
    problem: str | None = None

    def summary(self) -> str:
        """The record in a few words."""
        if self.problem is not None:
            return f"damaged: {self.problem}"
        history: list[Mapping[str, Any]] = self.training.get("history") or []
        settings: Mapping[str, Any] = self.training.get("settings", {}).get("training", {})
        best = self.training.get("best_epoch") if settings.get("load_best_model_at_end", True) else None
        kept: Mapping[str, Any] = history[(best or len(history)) - 1] if history else {}
        parts = [f"{k.replace('eval_', '')} {v:.3f}" for k, v in kept.items() if k != "epoch" and isinstance(v, float)]
        return f"{self.training.get('steps', 0)} steps" + (f", {', '.join(parts)}" if parts else "")


@dataclass(frozen=True)
class AdapterInfo:
    """A person's adapter in the store: the number of the current version (0: none is), and all versions in order."""

    name: str
    current: int
    versions: tuple[VersionInfo, ...]

    @property
    def size(self) -> int:
        """Bytes of all versions."""
        return sum(version.size for version in self.versions)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        return asdict(self)
