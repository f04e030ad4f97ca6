"""Faults on purpose, for tests: `--test-fault`. Nothing here is imported unless one is asked for,
but for `fault`, which reads what was asked."""
