"""torchvision has no wheel for this torch; PyKinML makes a transform of it that it never calls."""
