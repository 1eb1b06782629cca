"""The importance of MLP neurons, selecting neurons by it, and pruning them."""

from efface.neurons.pruning import PruningSummary, prune, zero_neurons, zero_outputs
from efface.neurons.scores import neuron_importance, relative_importance
from efface.neurons.selection import select_highest, select_neurons
from efface.neurons.statistics import ActivationStatistics, activation_statistics

__all__ = [
    "ActivationStatistics",
    "PruningSummary",
    "activation_statistics",
    "neuron_importance",
    "prune",
    "relative_importance",
    "select_highest",
    "select_neurons",
    "zero_neurons",
    "zero_outputs",
]
