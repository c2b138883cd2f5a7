"""A loan of a weight that holds its columns already, for the mathematics alone."""

from paca.method.columns.update import ColumnUpdate


class Held:
    def __init__(self, weight):
        self.weight = weight

    def __enter__(self):
        return self.weight

    def __exit__(self, *_):
        pass

    def finish(self):
        pass


def updates(indices, scalings, deltas):
    return tuple(map(ColumnUpdate, indices, deltas, scalings))
