"""Certificates: what was forgotten, with which model, and how well, so that no change goes unnoticed."""
