"""Everything that can be wrong with a model store.

ModelStoreError
+-- VersionNotFoundError    no such version, or nothing promoted yet
+-- ManifestInvalidError    the manifest is missing, foreign or of another schema
+-- HashMismatchError       a file is missing or its bytes are not the published ones
+-- GraphInvalidError       a graph does not load or has other tensors than the manifest says
+-- GoldenMismatchError     the graphs load but answer differently from the trainer
+-- DeviceError             the device that was asked for cannot be used
"""

from __future__ import annotations


class ModelStoreError(Exception):
    """Root of all errors of a model store."""


class VersionNotFoundError(ModelStoreError):
    """No such version, or nothing has been promoted."""


class ManifestInvalidError(ModelStoreError):
    """The manifest cannot be read, or was written by another schema."""


class HashMismatchError(ModelStoreError):
    """A file of the version is missing or was changed after publishing."""


class GraphInvalidError(ModelStoreError):
    """A graph cannot be loaded or its tensors differ from the manifest."""


class GoldenMismatchError(ModelStoreError):
    """The graphs do not reproduce the trainer's answers."""


class DeviceError(ModelStoreError):
    """The device that was asked for cannot be used."""
