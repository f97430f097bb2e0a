"""`python -m sdft.cli`."""

from sdft.cli import main

main()
