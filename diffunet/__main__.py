"""`python -m diffunet`."""

from diffunet.cli import console

if __name__ == "__main__":
    console()
