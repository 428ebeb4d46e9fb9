"""``python -m scorefusion``: the command line."""

from scorefusion.cli import main

if __name__ == "__main__":
    main()
