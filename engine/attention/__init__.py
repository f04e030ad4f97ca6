"""How attention reads and writes the KV cache: one seam, one room per way of doing it."""
