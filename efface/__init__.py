"""Efface: make a multimodal LLM forget people on request, and show that it did."""

from efface.torchvision_shim import ensure_torchvision

ensure_torchvision()  # before any module of transformers imports torchvision
