"""Tests: a file for each module, each test named after the claim that it checks. Run them with python -m vldm_mini test."""
