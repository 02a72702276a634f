"""The comparison of the snake with its rivals: what is compared, on what, and how it is shown."""
