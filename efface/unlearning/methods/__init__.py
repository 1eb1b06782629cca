"""The unlearning methods: ``METHODS`` holds every file of this folder that defines ``METHOD``."""

import importlib
import pkgutil
from collections import UserDict
from typing import Any

from efface.unlearning.method import Method


class _Methods(UserDict[str, Any]):
    """Methods by name, each imported on first use."""

    def __getitem__(self, name: str) -> Method:
        if self.data[name] is None:
            self.data[name] = importlib.import_module(f"{__name__}.{name}").METHOD
        method: Method = self.data[name]
        return method


METHODS = _Methods({file.name: None for file in pkgutil.iter_modules(__path__)})
"""All methods by name."""
