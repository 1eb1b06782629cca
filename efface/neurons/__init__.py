"""How much each neuron of each MLP matters, for which modality, and how to take neurons out."""

from efface.neurons.pruning import PruningSummary, held, zero_neurons, zero_outputs
from efface.neurons.scores import neuron_importance, relative_importance
from efface.neurons.selection import select_highest, select_neurons
from efface.neurons.statistics import ActivationStatistics, activation_statistics

__all__ = [
    "ActivationStatistics",
    "PruningSummary",
    "activation_statistics",
    "held",
    "neuron_importance",
    "relative_importance",
    "select_highest",
    "select_neurons",
    "zero_neurons",
    "zero_outputs",
]
