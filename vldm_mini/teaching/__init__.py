"""Pictures, exercises, the demo page: what notebooks use."""
