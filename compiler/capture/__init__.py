"""Capture: Dynamo → AOTAutograd → ATen graph → regions that effc compiles, and the rest for ATen."""

from effc.compiler.capture.recording import Recording, record

__all__ = ["Recording", "record"]
