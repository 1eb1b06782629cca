"""Taking neurons out of a model."""

from efface.pruning.neurons import PruningSummary, held, zero_neurons, zero_outputs

__all__ = ["PruningSummary", "held", "zero_neurons", "zero_outputs"]
