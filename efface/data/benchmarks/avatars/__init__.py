"""Invented people with drawn portraits: the benchmark that needs no download."""
