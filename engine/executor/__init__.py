"""Executors: who carries a `StepPlan` out. `base` is the seam, the others are compute wing."""
