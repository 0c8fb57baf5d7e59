"""Tests: a file for each module, each test named after the claim that it checks. Run them: python -m vldm_mini test."""
