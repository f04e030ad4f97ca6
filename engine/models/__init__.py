"""One file per model family; `engine/registry.py` has one line for each."""
