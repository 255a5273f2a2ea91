import os

# OpenCV reads how many pixels an image may claim when it is imported, by whichever module comes first; its own limit
# lets a file of 100 bytes take 3 GB. Cameras reach 61 million pixels; who has larger images can set more beforehand.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))
