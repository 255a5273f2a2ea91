"""An image of a source as actors read it."""

import numpy as np

from psys.data.read import read_encoded
from psys.data.reference import Reference
from psys.segment.decode import decode_upright


def read_image(reference: Reference) -> np.ndarray:
    """RGB pixels (H, W, 3), or ValueError saying why not."""
    return decode_upright(read_encoded(reference))[0]
