"""An image of a source as actors read it."""

import numpy as np

from psys.data.reference import Reference, read_encoded
from psys.segment.decode import decode_upright


def read_image(reference: Reference) -> np.ndarray:
    """RGB pixels (H, W, 3), or ValueError saying why not."""
    return decode_upright(read_encoded(reference))[0]
