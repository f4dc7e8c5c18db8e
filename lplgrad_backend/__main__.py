"""`python -m lplgrad_backend`."""

from lplgrad_backend.cli import main

if __name__ == "__main__":
    main()
