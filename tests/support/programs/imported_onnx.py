"""Prints which packages for ONNX are imported by the modules that training uses."""

import sys

import psys.augment.batch
import psys.models.registry  # noqa: F401

print([name for name in ("onnx", "onnxruntime", "onnxscript") if name in sys.modules])
