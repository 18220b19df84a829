"""A folder a study: what it measures, and its figures."""
