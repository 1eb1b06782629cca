"""Taking neurons out of a model."""

from efface.pruning.neurons import PruningSummary, zero_neurons

__all__ = ["PruningSummary", "zero_neurons"]
