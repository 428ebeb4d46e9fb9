"""UIDs and pseudonyms: a function of what they stand for, so that the same source is named alike again."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """How a derived series calls its source and itself.

    Attributes:
        hide: whether the source's own UIDs are replaced.
        secret: without it, whoever has a source's UIDs can work out the replaced ones.
    """

    hide: bool = False
    secret: str = ""

    def new(self, *parts: str) -> str:
        """A UID (``2.25.`` and a UUID, PS3.5 B.2) that nothing but ``parts`` and the secret decide."""
        return f"2.25.{uuid.UUID(bytes=self._digest(*parts)[:16], version=5).int}"

    def kept(self, uid: str) -> str:
        """A UID of the source: itself, or where it is to be hidden the one that stands for it."""
        return self.new("source", uid) if self.hide else uid

    def patient(self, patient: str, study: str) -> str:
        """A pseudonym: of the patient where there is a secret, else of the study.

        Patients' numbers are few enough to be tried out one by one, so that without a secret nothing is
        made of them.
        """
        told = ("patient", patient) if self.secret and patient else ("study", study)
        return f"SF-{self._digest(*told).hex()[:16].upper()}"

    def _digest(self, *parts: str) -> bytes:
        text = "\0".join(parts).encode("utf-8", "surrogateescape")
        return hmac.new(self.secret.encode("utf-8"), text, hashlib.sha256).digest()
