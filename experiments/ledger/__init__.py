"""Claims, the measurements for each, and the pages that show them."""
