"""What root may do, seen as somebody who may not."""

import os
from contextlib import contextmanager


@contextmanager
def as_nobody():
    """Gives up root's rights for a while, where this process has them: permissions of files count then."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
