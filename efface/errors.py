"""Errors a user can act on.

EffaceError(ValueError)
├── DataError        a table, picture or split that breaks the data model
├── ModelError       a model, processor or checkpoint that cannot be used as requested
├── ArtifactError    a file that is missing, damaged, or belongs to something else
└── EvaluationError  score tables from which a number cannot be computed
"""


class EffaceError(ValueError):
    """What was expected, what came instead, and what to do about it."""


class DataError(EffaceError):
    """Samples, pictures or splits that break the data model."""


class ModelError(EffaceError):
    """A model, processor or checkpoint that cannot be used as requested."""


class ArtifactError(EffaceError):
    """A file that is missing, damaged, or was made from something else."""


class EvaluationError(EffaceError):
    """Score tables from which a number cannot be computed."""
