"""Section 4: measures of videos, and the classifiers that say what a generated video shows.

`measures` and `flicker` need videos only; `frechet` compares sets of features.
`action_classifiers` and `driving_classifiers` are evaluation networks trained on real or rendered
clips, `*_training` trains them, and `action_samples` and `driving_samples` generate what the
benchmarks measure.
"""
