"""`python -m sparsify`, which is also what torchrun starts."""

from sparsify.cli import main

main()
