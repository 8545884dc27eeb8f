"""Loading what takes seconds, in a good half of them.

Importing torch, transformers and peft makes half a million objects, which stay. Python's search for
garbage goes through them over and over while they come, and takes them apart at the end.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """For imports: no search for garbage goes on inside, and none goes through what came later."""
    searched, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        if searched:
            gc.enable()
