"""What a device or server is, and whether an artifact fits it. Never imports torch."""
