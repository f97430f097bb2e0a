"""`python -m sdft`, for launchers that start modules, such as `accelerate launch -m sdft train RECIPE`."""

from sdft.cli import main

main()
