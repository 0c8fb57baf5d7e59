"""Small planted mistakes: does a test notice each of them? See `python -m tests.mutants --help`."""
