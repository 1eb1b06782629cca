"""params.yaml as frozen classes, profiles, and the table of stages."""

from tasks.config.file import ParamsError, checked, load_params, use_profile
from tasks.config.root import REFERENCE_MODELS, SHARED_MODELS, Params
from tasks.config.stages import STAGES, Stage

__all__ = [
    "REFERENCE_MODELS",
    "SHARED_MODELS",
    "STAGES",
    "Params",
    "ParamsError",
    "Stage",
    "checked",
    "load_params",
    "use_profile",
]
