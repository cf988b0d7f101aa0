"""PEFT on PyTorch, with each form of attention, and compiled."""

from __future__ import annotations

import shutil

from benchmarks.rivals.base import Place, Preparation, Rival, Unavailable

WORKER = "benchmarks.worker_peft"


def needs_compiler(place: Place) -> Preparation:
    """torch.compile writes C++ for the processor."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise Unavailable("torch.compile needs a C++ compiler, and neither g++ nor clang++ is installed")
    return Preparation()


EAGER = Rival("peft-eager", "PEFT, eager attention", WORKER, "peft", {"attention": "eager"})
SDPA = Rival("peft-sdpa", "PEFT, sdpa", WORKER, "peft", {"attention": "sdpa"})
COMPILED = Rival(
    "peft-compile", "PEFT, sdpa, torch.compile", WORKER, "peft", {"attention": "sdpa", "compile": True}, needs_compiler
)
