"""The two names of torchvision.transforms that PyKinML makes and never calls."""

from __future__ import annotations


class ToTensor:
    """Never called."""


class Compose:
    """Never called."""

    def __init__(self, transforms: list[ToTensor]) -> None:
        """transforms: kept, as torchvision does."""
        self.transforms = transforms
