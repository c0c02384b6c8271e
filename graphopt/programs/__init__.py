"""torch programs on their way: captured, verified, measured, written."""
