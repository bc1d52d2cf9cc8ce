"""What a device or server is, and whether an artifact fits it. Never imports torch."""

import os

# onnxruntime's official wheels report to their maker since 1.29, unless this is set. attar sends nothing anywhere, nor
# do the libraries that it wakes; every room imports this one first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
