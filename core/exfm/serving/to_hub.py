"""Sends an export to a model repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from exfm.errors import ConfigError, RunError
from exfm.extras import import_extra
from exfm.serving.description import ONNX_FILE, PROGRAM_FILES, WEIGHTS_FILES, Description


class HubTarget:
    """Sends files to a repository in one commit.

    Login and address of the Hub are those of huggingface_hub: ``hf auth login`` or ``HF_TOKEN``, and ``HF_ENDPOINT``.

    Args:
        repository: OWNER/NAME.
        public: whether everybody sees a repository that is created; one that exists stays as it is.

    Raises:
        ConfigError: the name is malformed, or huggingface_hub is not installed.
    """

    def __init__(self, repository: str, public: bool) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise ConfigError(f"TARGET: a repository of the Hub is written hf://OWNER/NAME; given: hf://{repository}")
        huggingface_hub = import_extra("huggingface_hub", "huggingface_hub", "hub")
        self._api = huggingface_hub.HfApi()
        self._repository = repository
        self._public = public

    def send(self, folder: Path, description: Description) -> str:
        """Creates the repository if there is none, and commits the files.

        Raises:
            ConfigError: the Hub refuses the name.
            RunError: the Hub refuses the login or the files.
        """
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        until = description.watermark.isoformat(timespec="minutes")
        message = f"{description.model}: snapshot {description.snapshot}, trained until {until}"
        try:
            self._api.create_repo(self._repository, private=not self._public, exist_ok=True)
            commit = self._api.upload_folder(
                repo_id=self._repository,
                folder_path=folder,
                commit_message=message,
                # Forms of an earlier push that this export lacks would be of another snapshot.
                delete_patterns=[*PROGRAM_FILES, ONNX_FILE, WEIGHTS_FILES],
            )
        except HFValidationError as error:
            raise ConfigError(f"TARGET: hf://{self._repository}: {error}") from error
        except HfHubHTTPError as error:
            text = " ".join(str(error).split())
            raise RunError(f"hf://{self._repository}: {text}; `hf auth login` or HF_TOKEN logs in") from error
        return str(commit.commit_url)
