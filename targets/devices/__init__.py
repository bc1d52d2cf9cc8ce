"""Ways to reach a device: put files there, run the probe, get its answer."""
