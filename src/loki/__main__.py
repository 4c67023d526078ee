"""`python -m loki` is the command line."""

from loki.cli import main

if __name__ == "__main__":
    main()
