"""Claims, what was measured of each, and the pages that show it."""
