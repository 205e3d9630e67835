"""Modules imported on first use, so that `--help` and `plan` do not wait for torch."""

from __future__ import annotations

import importlib
from typing import Any


class Module:
    """Stands for a module until something in it is asked for.

    The standard library's LazyLoader is not used: it leaves unexecuted modules where `inspect` stumbles over them.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
