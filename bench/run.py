"""`make bench`: every measurement that needs no special machine, one after another."""

from . import disable, real_data, startup


def main() -> None:
    """Run them all with their defaults."""
    startup.main()
    disable.main()
    real_data.main()


if __name__ == "__main__":
    main()
