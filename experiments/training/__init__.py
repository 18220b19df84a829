"""Networks and the loops that train them, on one device or many."""
