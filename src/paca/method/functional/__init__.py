"""The mathematics: one file per kind of layer, autograd functions over plain tensors."""
