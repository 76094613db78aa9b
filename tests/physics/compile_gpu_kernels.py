"""Compile every variant of the kernels for NVIDIA's H100, which needs no GPU; a line for each."""

from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from petomo.physics import gpu

H100 = GPUTarget("cuda", 90, 32)
TYPES = {"corner": "*i64", "mask": "*u8", "epsilon": "fp32", "scale": "fp32"}
WHOLE = ("modes", "size", "columns", "width")


def size_when_compiled(kernel, **constants):
    constants |= {"block": gpu.BLOCK}
    signature = {
        name: "constexpr" if name in constants else TYPES.get(name, "i32" if name in WHOLE else "*fp32")
        for name in kernel.arg_names
    }
    built = triton.compile(ASTSource(kernel, signature, constants), target=H100)
    return len(built.asm["cubin"])


VARIANTS = [(gpu._transmit, {})]
VARIANTS += [
    (gpu._pull_back, {"to_phase": a, "to_absorption": b})
    for a, b in product((True, False), repeat=2)
    if a or b
]
VARIANTS += [(gpu._compare, {"poisson": a, "masked": b}) for a, b in product((True, False), repeat=2)]

for kernel, constants in VARIANTS:
    print(kernel.__name__, constants, size_when_compiled(kernel, **constants))
