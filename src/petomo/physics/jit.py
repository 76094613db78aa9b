"""How numba compiles what `petomo.physics.compiled.compiled` loads.

What is kept is compiled anew when the file of the function that is called has changed. After a change of what
is inlined into it from another file (`waves`, `vectors`) touch that one as well.
"""

from __future__ import annotations

from functools import partial

import numba

#: For functions that are called from outside.
jit = partial(numba.njit, cache=True, nogil=True, fastmath=True, error_model="numpy")

#: For parts of those. As functions of their own they would be compiled twice, by themselves and into their
#: callers; what has just been compiled uses the one, what comes from the cache the other, and they round
#: differently.
inlined = partial(jit, inline="always")
