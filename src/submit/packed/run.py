"""Predict a folder of images with the models packed beside this file. python run.py --help"""

import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path[:0] = [str(here), str(here / "vendor")]
sys.path.append(str(here / "fallback"))  # last: what is installed wins

from src.submit.batch import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["--output", str(here / "output"), *sys.argv[1:]]))
