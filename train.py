"""`accelerate launch train.py RECIPE.yaml [--field value ...]`; the same as `vss-hf train`."""

from vss_hf.cli import train_main


if __name__ == "__main__":
    train_main()
