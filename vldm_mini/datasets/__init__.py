"""What the models learn from: `toy` (worlds known in closed form) and `video` (real clips)."""
