"""The method, in torch alone: the mathematics, and where columns are written."""
