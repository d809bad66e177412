"""`python -m pykinml_func` is the command `pykinml`; torchrun starts it so."""

from pykinml_func.cli import main

if __name__ == "__main__":
    main()
