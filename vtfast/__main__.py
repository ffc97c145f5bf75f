"""`python -m vtfast` is the command `vtfast`."""

from vtfast.cli import main

if __name__ == "__main__":
    main()
