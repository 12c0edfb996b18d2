"""When Python looks for garbage: of what thousands make in a moment nearly all is gone by itself, and to look through all that lives takes a tenth
of a process's time.
"""

import gc


def settle() -> None:
    """The process has begun, or thousands have just joined: what is here now stays, and it need not be looked through again.

    Objects that hold each other are found later: when there are so many new ones that it pays.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
