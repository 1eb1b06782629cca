"""Scoring a model sample by sample, and metrics made of the scores."""

from efface.evaluation.scoring import score

__all__ = ["score"]
