"""Tensors in, tensors out. Imports nothing else of octavo."""
