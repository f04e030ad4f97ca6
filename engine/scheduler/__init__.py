"""Planning wing: who runs in the next step. No torch, no numpy."""
