"""Efface: make a multimodal LLM forget people on request, and show that it did."""
