"""Drills: what must hold when things go wrong, tried on a real daemon by HTTP and signals alone."""
