"""What the models learn from: `toy` (known in closed form), `driving` (rendered), `video` (real
clips)."""
