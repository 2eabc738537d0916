"""A proven directory, and a Hub on loopback to push it to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub

from w4afp8.validate import gate, validate
from w4afp8.validate.origin import origin_of
from w4afp8.validate.seal import take_seal


@pytest.fixture(scope="session")
def _proven(quantized_toy: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, made = quantized_toy
    out = Path(shutil.copytree(made, tmp_path_factory.mktemp("proven") / "toy-W4AFP8"))
    seal = take_seal(out)
    gate.write_verdict(out, validate(out, source), seal, origin_of(source))
    return out


@pytest.fixture
def proven(_proven: Path, tmp_path: Path) -> Path:
    """A copy of a proven directory; dates are copied too."""
    return Path(shutil.copytree(_proven, tmp_path / "toy-W4AFP8"))


@pytest.fixture
def xet_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The real client, logged in, speaks to this one as it is installed by default: large files go through Xet."""
    from huggingface_hub import constants
    from huggingface_hub.utils._xet import abort_xet_session

    with FakeHub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        address = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + address)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
        monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "10ms")  # seconds, else, before it tries again
        yield server
        abort_xet_session()  # the next one reads its cache's place anew


@pytest.fixture
def hub(xet_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The same through git LFS, as HF_HUB_DISABLE_XET has it, and a machine for which there is no hf_xet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return xet_hub
