"""Folding of batch norms into the layers next to them."""
