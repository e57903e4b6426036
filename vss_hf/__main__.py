"""`python -m vss_hf`: the same as `vss-hf`."""

from vss_hf.cli import main


if __name__ == "__main__":
    main()
