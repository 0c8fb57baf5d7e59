"""Tests. `python -m vldm_mini test` runs them; tests/benchmarks measures what takes longer."""
