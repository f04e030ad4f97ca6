"""The worker: turns a `StepPlan` into tensors, runs the model, and keeps what it sampled."""
