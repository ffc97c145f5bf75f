"""The names of the questions that can be asked about a drawn scene."""

# From low to high visual complexity: from one colour to three characters in reading order.
TASKS = ("background", "shape_colour", "shape", "count", "digit", "code")
