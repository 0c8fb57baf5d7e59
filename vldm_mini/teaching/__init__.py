"""What notebooks use: pictures, exercises and the demo page."""
