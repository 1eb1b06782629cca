"""What everything costs, as ratios to the plain pass over the same data: python -m scripts.performance

Contenders take turns in one process, in one order and then in the other, so that a slow moment of the machine
and what the one before left in the caches meet all of them. A ratio is the median of the rounds' ratios.
"""
