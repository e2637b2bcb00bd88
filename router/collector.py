"""Keeps Python's cyclic garbage collector out of the way of requests.

Looking through everything that a gateway has imported and built takes 50 to 150 ms, in which nobody is answered, and
under load it came several times a second.
"""

import gc

YOUNG = 10_000  # containers made and not yet freed, until the collector looks at the young ones; Python's own is 700


def settle() -> None:
    """Whatever is there now is not looked through again; what comes later is, less often.

    Call it once what lives as long as the process is in place. Reference counts free it as before; only a cycle that
    breaks off from it stays.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)
