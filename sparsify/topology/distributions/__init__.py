"""How a network's sparsity is shared out among its layers. One file each.

A distribution is one function `allocate(shapes, sparsity) -> {name: sparsity}`. `shapes` are the weights'
shapes by name, [out, in] or [out, in, kernel...], in the order in which the network uses them.
"""
