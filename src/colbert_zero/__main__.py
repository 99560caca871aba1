"""`python -m colbert_zero`."""

from colbert_zero.cli import main

main()
