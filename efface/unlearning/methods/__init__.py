"""The unlearning methods, one per file: a file in this folder that defines ``METHOD`` is in ``METHODS``."""

import importlib
import pkgutil

from efface.unlearning.method import Method

METHODS: dict[str, Method] = {
    file.name: importlib.import_module(f"{__name__}.{file.name}").METHOD
    for file in pkgutil.iter_modules(__path__)
}
"""All methods by name."""
