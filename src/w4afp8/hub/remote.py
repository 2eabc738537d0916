"""One repository on the Hub, through huggingface_hub: the only place where something is sent."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w4afp8.errors import HubError, RecipeError
from w4afp8.hub.refusals import explain, status_of
from w4afp8.hub.shipment import File

MAIN = "main"
PULL_REQUEST = "refs/pr/"
NO_LOGIN = "not logged in to the Hub: run `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What the Hub says of a file: the content's SHA-256 of a large one, git's id of a small one."""

    bytes: int
    sha256: str | None
    git_id: str

    def is_same(self, file: File) -> bool:
        if self.bytes != file.bytes:
            return False
        return self.sha256 == file.sha256 if self.sha256 is not None else self.git_id == file.git_id()


class Remote:
    """A model repository at one revision; `revision` changes when a pull request is opened."""

    def __init__(self, repo: str, revision: str) -> None:
        from huggingface_hub import HfApi

        self.repo, self.revision = repo, revision
        self.pull_request: str | None = None  # its address, once opened here
        self._api: Any = HfApi(library_name="w4afp8")

    def open(self, private: bool | None, create_pr: bool) -> bool:
        """Find or create repository and branch; True when the repository was created.

        Raises: RecipeError when it is new and nobody said private or public, or is not what was said.
        """
        is_private = self._visibility()
        created = is_private is None
        if is_private is None:
            self._create(private)
        elif private is not None and private != is_private:
            here, asked = ("private", "--public") if is_private else ("public", "--private")
            raise RecipeError(f"{self.repo} exists and is {here}, but {asked} was given; change one of the two")
        if not create_pr and self.revision != MAIN and not self.revision.startswith("refs/"):
            self._branch()
        return created

    def _visibility(self) -> bool | None:
        """Is it private?  None when there is no such repository."""
        try:
            return bool(self._api.repo_info(self.repo).private)
        except Exception as error:
            if status_of(error) == 404 or (
                status_of(error) == 401 and type(error).__name__ == "RepositoryNotFoundError"
            ):
                self._identify()
                return None
            raise explain(error, f"looking for {self.repo}") from error

    def _identify(self) -> None:
        """The Hub says 'not found' to a wrong login too: ask it who we are before a repository is created."""
        try:
            self._api.whoami()
        except Exception as error:
            raise explain(error, "logging in") from error

    def _create(self, private: bool | None) -> None:
        if private is None:
            raise RecipeError(f"{self.repo} does not exist yet: give --private or --public to have it created")
        try:
            self._api.create_repo(self.repo, private=private)
        except Exception as error:
            raise explain(error, f"creating {self.repo}") from error

    def _branch(self) -> None:
        try:
            self._api.create_branch(self.repo, branch=self.revision, exist_ok=True)
        except Exception as error:
            raise explain(error, f"creating the branch {self.revision} of {self.repo}") from error

    def head(self) -> str:
        """The newest commit of the revision."""
        return str(self._api.repo_info(self.repo, revision=self.revision).sha)

    def files(self) -> dict[str, RemoteFile]:
        """Every file of the revision, by name."""
        found = {}
        for entry in self._api.list_repo_tree(self.repo, recursive=True, revision=self.revision):
            if hasattr(entry, "blob_id"):
                digest = entry.lfs.sha256 if entry.lfs else None
                found[entry.path] = RemoteFile(entry.lfs.size if entry.lfs else entry.size, digest, entry.blob_id)
        return found

    def send(self, folder: Path, files: Iterable[File], title: str, parent: str) -> str:
        """Upload and commit `files` on top of `parent` and nothing else; the commit.

        Through Xet where hf_xet is installed, as it is by default, else through git LFS; neither sends content that is
        there.
        """
        done = self._api.upload_folder(
            repo_id=self.repo,
            folder_path=folder,
            allow_patterns=[glob.escape(file.name) for file in files],
            commit_message=f"w4afp8: {title}",
            revision=self.revision,
            parent_commit=parent,
        )
        return str(done.oid)

    def begin_pull_request(self, title: str, description: str) -> None:
        """A draft against main, to which everything that follows is sent."""
        try:
            draft = self._api.create_pull_request(self.repo, title=title, description=description)
        except Exception as error:
            raise explain(error, f"opening a pull request at {self.repo}") from error
        self.revision, self.pull_request = draft.git_reference, draft.url

    def end_pull_request(self) -> None:
        """A draft becomes ready to be looked at; one that is open already stays so.  Nothing on a branch."""
        if not self.revision.startswith(PULL_REQUEST):
            return
        number = int(self.revision.removeprefix(PULL_REQUEST))
        try:
            found = self._api.get_discussion_details(self.repo, number)
            if found.status == "draft":
                self._api.change_discussion_status(self.repo, number, "open")
        except Exception as error:
            raise explain(error, f"opening the pull request {self.revision} of {self.repo}") from error
        self.pull_request = found.url


def check_login() -> None:
    """Raises: HubError when huggingface_hub knows no token.  The token itself is never looked at."""
    if not is_logged_in():
        raise HubError(NO_LOGIN)


def is_logged_in() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def quiet() -> None:
    """No bars and no remarks of huggingface_hub: standard output and error stay ours."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
