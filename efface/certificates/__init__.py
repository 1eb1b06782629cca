"""Certificates: their digests, the chain they form, and their page."""
