"""Load tests that speak HTTP only; imports nothing else of octavo."""
