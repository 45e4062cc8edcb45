"""``python -m mip_lightning`` is the command ``mip-lightning``."""

from mip_lightning.cli.main import main

if __name__ == "__main__":
    main()
