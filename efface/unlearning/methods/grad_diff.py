"""Gradient difference: ascent on the forget set, descent on the retain set, in one step.

Reference:
    Liu et al., "Continual Learning and Private Unlearning", arXiv:2203.12817. The code released with
    MLLMU-Bench walks one set after the other; here both terms meet in every step.
"""

from efface.unlearning.method import Method

METHOD = Method(name="grad_diff", paper="arXiv:2203.12817")
