"""Every error that `steer` raises on purpose.

Each message says what was expected, what came, and what to do. All of them derive from
`SteerError`, so `except steer.SteerError` catches what the engine refuses and nothing else.
"""

from __future__ import annotations


class SteerError(Exception):
    """Base class of every error raised on purpose by this package."""


class InputError(SteerError, ValueError):
    """An argument has the wrong type, shape or value."""


class TraitError(InputError):
    """A trait definition is invalid; the message names the file and the field."""


class WeightsError(InputError):
    """Trait weights are unknown, negative, not finite or all zero."""


class ModelError(SteerError):
    """A model could not be loaded or is not usable for steering."""


class UnsupportedModelError(ModelError):
    """No decoder layers were found in a model."""


class UntestedModelWarning(UserWarning):
    """Decoder layers were found by their shape, in a family that the test suite does not cover."""


class SlowPrecisionWarning(UserWarning):
    """A model was loaded in a precision that the processor has no units for."""


class LowReliabilityWarning(UserWarning):
    """A trait's contrast pairs hardly agree on a direction, so it may not be steerable."""


class DataError(SteerError):
    """Stored contrast data are missing, damaged, or were made by other settings."""


class CalibrationError(SteerError):
    """No dose reaches the requested effect."""


class CertificateError(SteerError):
    """A bound could not be computed, so none is claimed."""


class SteeringError(SteerError, RuntimeError):
    """Steering could not be carried out in a call to the model."""


class EditNeverFiredError(SteeringError):
    """A model call finished, and an edit that should have acted never did."""


class ConcurrentSteeringError(SteeringError):
    """A second thread used a model while another one was steering it."""


class StoreError(SteerError):
    """Stored people could not be read or written."""


class BundleError(SteerError):
    """A bundle file cannot be used."""


class BundleFormatError(BundleError):
    """The file is not a well-formed bundle: truncated, damaged, or another kind of file."""


class BundleVersionError(BundleError):
    """The bundle was written with a newer schema than this version reads."""


class FingerprintError(BundleError):
    """The bundle was built on another model than the one it is to be used with."""


class HubError(SteerError):
    """A bundle could not be pushed to a hub, or pulled from one."""
