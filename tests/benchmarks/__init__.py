"""Figures that are no tests: python -m tests.benchmarks --list, python -m tests.benchmarks NAME.

A benchmark is a module here, `-` in its name written `_`, whose docstring's first line says what
it measures and whose `run() -> dict` returns its figures. The protocol stands in the module;
results lie in results/NAME.json.
"""
