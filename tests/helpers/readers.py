"""Read a foreign data set with one of the readers of `mmgrc.conversion`."""

from mmgrc.conversion.folder import Folder
from mmgrc.conversion.formats import read


def read_source(name, root, images=None):
    """What a reader found, and its folder. Faults are raised as a user would see them."""
    folder = Folder(root, images)
    return read(name, folder), folder
