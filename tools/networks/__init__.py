"""The networks that methods are measured on: one file per network, each entering itself in `NETWORKS`."""

from __future__ import annotations

import importlib
import pkgutil

from networks._base import NETWORKS, NetworkKind, Options

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["NETWORKS", "NetworkKind", "Options"]
