"""Gradient ascent: raise the loss on the forget set, and look at nothing else.

Reference:
    Thudi et al., "Unrolling SGD", arXiv:2109.13398; as a baseline in MLLMU-Bench, arXiv:2410.22108.
    It has no floor and diverges; the loop's stop rules end it.
"""

from efface.unlearning.method import Method

METHOD = Method(name="gradient_ascent", paper="arXiv:2109.13398", retain_loss=None)
