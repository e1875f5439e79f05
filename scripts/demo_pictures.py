"""Write the demo's pictures: a digit that training has not seen, and a photograph.

python scripts/demo_pictures.py FOLDER
"""

import sys
from pathlib import Path

from PIL import Image
from skimage import data

from foveate_train.data import mnist


def main(folder: Path) -> None:
    """Write digit.png (the first of MNIST's test set, a 7) and coffee.jpg into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    images, _ = mnist.load("test")
    Image.fromarray(images[0]).save(folder / "digit.png")
    Image.fromarray(data.coffee()).save(folder / "coffee.jpg", quality=95)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
