"""`python -m milkshake_mbp` is `mbp`."""

from milkshake_mbp.commands import main

if __name__ == "__main__":
    main()
