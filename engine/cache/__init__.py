"""Planning wing: which blocks hold what. No torch, no numpy."""
