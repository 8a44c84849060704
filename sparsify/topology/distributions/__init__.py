"""How a network's sparsity is shared out among its layers. One file each.

A distribution is one function `allocate(shapes, sparsity) -> {name: sparsity}`. `shapes` are the matrices'
shapes by name, [out, in] or [out, in, kernel...], in the order in which the network uses them. A constant
`FIRST_DENSE = True` says that the network's first layer stays dense and does not count.
"""
