"""`python -m puma_edge`."""

from puma_edge.cli import main

if __name__ == "__main__":
    main()
