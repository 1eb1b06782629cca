"""Scoring a model sample by sample, and metrics of score tables."""

REFERENCE_MODELS = ("base", "vanilla", "retrained")
"""Models every unlearned model is compared with."""
LEVEL = 0.95
"""Confidence level of every interval."""
LEARNT = 0.05
"""Smallest lead of vanilla on a set, in [0, 1], for which a change on it can be measured."""
MANY_PEOPLE = 20
"""With fewer people to forget, one run ranks no methods."""
