"""Evaluation (paper, section 4): measures with their baselines, classifiers, Fréchet distances."""
