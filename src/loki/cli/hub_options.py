"""Uploading to the hub what a command has written: options that several commands share."""

from dataclasses import dataclass
from pathlib import Path

from loki.cli.app import say


@dataclass(frozen=True)
class HubOptions:
    """Where to upload the result to, if anywhere.

    Attributes:
        push_to_hub: hub id of the model repository that the finished output is uploaded to; made if there is none.
        private: with --push-to-hub: make a new repository private.
    """

    push_to_hub: str | None = None
    private: bool = False

    def check(self) -> None:
        """Refuse before the work what uploading would refuse after it."""
        if self.push_to_hub is not None:
            from loki.models.hub import check_upload

            check_upload(self.push_to_hub)

    def push(self, output: Path) -> None:
        """Upload `output`, where that is asked for, and say where to."""
        if self.push_to_hub is not None:
            from loki.models.hub import upload

            address = upload(output, self.push_to_hub, private=self.private)
            say(f"Uploaded to {address}", uploaded_to=address)
