"""`python -m aihwkit_nabn` is `nabn`."""

from aihwkit_nabn.cli import main

if __name__ == "__main__":
    main()
