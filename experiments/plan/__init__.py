"""Memory, work and bounds of a training run on devices that are not there."""
