"""`python -m jaxalign` is `jaxalign`."""

from jaxalign.cli import main

if __name__ == "__main__":
    main()
