"""Every way from a tokenizer's name to its weights, or to words that help."""

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from pipeline.errors import ArtefactError, UsageError
from pipeline.weights import TINY_VAE, hub_reachable, in_cache, locate

WEIGHTS = "diffusion_pytorch_model.safetensors"


def model(folder: Path) -> Path:
    """What locate() takes for a model in diffusers' format; it opens neither file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / WEIGHTS).write_bytes(b"")
    return folder


def cached(cache: Path, hub_id: str) -> Path:
    """An empty snapshot of a hub id, as the hub client lays it out."""
    home = cache / f"models--{hub_id.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    return snapshot


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.fixture
def open_port() -> Iterator[int]:
    """A port that takes connections and answers every request with 404."""

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a hub that nobody can reach."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    return tmp_path / "cache"


def refused(tokenizer: str | Path) -> ArtefactError:
    with pytest.raises(ArtefactError) as caught:
        locate(str(tokenizer))
    assert caught.value.exit_code == 4
    return caught.value


# --- paths


def test_tiny_vae_is_in_the_package() -> None:
    assert locate("tiny-vae") == TINY_VAE
    assert Path("pipeline/assets/tiny-vae").parts == TINY_VAE.parts[-3:]


def test_directory_in_diffusers_format_is_itself(tmp_path: Path) -> None:
    folder = model(tmp_path / "my vae")
    assert locate(str(folder)) == folder


@pytest.mark.parametrize("subfolder", ["vae", "vqvae", "movq"])
def test_full_pipeline_keeps_its_autoencoder_in_a_subfolder(tmp_path: Path, subfolder: str) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    model(tmp_path / "unet")
    folder = model(tmp_path / subfolder)
    assert locate(str(tmp_path)) == folder


def test_weights_file_of_a_model_stands_for_its_directory(tmp_path: Path) -> None:
    folder = model(tmp_path / "vae")
    assert locate(str(folder / WEIGHTS)) == folder


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pt", ".pth"])
def test_single_file_is_itself(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"checkpoint{suffix}"
    file.write_bytes(b"")
    assert locate(str(file)) == file


def test_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = model(tmp_path / "vae")
    assert locate("~/vae") == folder


def test_known_name_is_not_mistaken_for_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model(tmp_path / "taesd")
    assert "madebyollin/taesd" in refused("taesd").message


@pytest.mark.parametrize("missing", ["config.json", WEIGHTS])
def test_directory_without_both_files_says_what_it_lacks(tmp_path: Path, missing: str) -> None:
    (model(tmp_path / "vae") / missing).unlink()
    error = refused(tmp_path / "vae")
    assert str(tmp_path / "vae") in error.message
    assert "config.json" in error.fix
    assert WEIGHTS in error.fix


def test_file_of_another_kind_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    assert "holds no tokenizer" in refused(tmp_path / "notes.txt").message


@pytest.mark.parametrize(
    "word",
    ["sdvae", "./nowhere", "/nowhere/vae", "a/b/c", "~/nowhere", "weights/gone.ckpt", "a b/c?"],
)
def test_word_that_is_neither_name_path_nor_hub_id_lists_the_names(word: str) -> None:
    error = refused(word)
    assert repr(word) in error.message
    assert "tiny-vae, sd-vae, taesd, taesd3" in error.message


def test_vq_is_a_kind_and_not_a_tokenizer() -> None:
    with pytest.raises(UsageError, match="no weights of that kind are standard"):
        locate("vq")


# --- the hub


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("sd-vae", "stabilityai/sd-vae-ft-mse"),
        ("taesd", "madebyollin/taesd"),
        ("taesd3", "madebyollin/taesd3"),
        ("somebody/vae", "somebody/vae"),
    ],
)
@pytest.mark.parametrize("offline", [True, False])
def test_cached_weights_need_no_network(
    cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, hub_id: str, offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    snapshot = model(cached(cache, hub_id))
    assert locate(name) == in_cache(hub_id) == snapshot


def test_cached_pipeline_keeps_its_autoencoder_in_a_subfolder(cache: Path) -> None:
    folder = model(cached(cache, "somebody/stable-diffusion") / "vae")
    assert locate("somebody/stable-diffusion") == folder


def test_half_a_download_in_the_cache_is_not_taken_for_the_model(cache: Path) -> None:
    snapshot = model(cached(cache, "madebyollin/taesd"))
    (snapshot / WEIGHTS).unlink()
    assert in_cache("madebyollin/taesd") is None
    assert "cannot be reached" in refused("taesd").message


def test_offline_is_respected_and_said(
    cache: Path, open_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{open_port}")
    assert hub_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_reachable()
    error = refused("sd-vae")
    for words in ("'sd-vae' (stabilityai/sd-vae-ft-mse)", str(cache), "HF_HUB_OFFLINE"):
        assert words in error.message
    assert "hf download stabilityai/sd-vae-ft-mse --local-dir" in error.fix
    assert "tiny-vae" in error.fix


@pytest.mark.parametrize("name", ["taesd", "somebody/vae"])
def test_unreachable_hub_is_named_with_what_to_do(cache: Path, name: str) -> None:
    error = refused(name)
    for words in (name, str(cache), f"{constants.ENDPOINT} cannot be reached"):
        assert words in error.message
    assert "hf download" in error.fix


def test_unresolvable_hub_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    assert not hub_reachable()


def test_proxy_stands_in_front_of_the_hub(open_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{open_port}")
    assert hub_reachable()
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port()}")
    assert not hub_reachable()


def test_hub_without_the_model_is_a_failed_download(
    open_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{open_port}")
    error = refused("somebody/vae")
    assert "its download failed" in error.message
    assert "404 Not Found" in error.message
    assert "hf download somebody/vae" in error.fix


def test_download_asks_for_the_autoencoders_files_alone(
    tmp_path: Path, open_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(hub_id: str, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(model(tmp_path / hub_id))

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{open_port}")
    monkeypatch.setattr("pipeline.weights.in_cache", lambda _: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("sd-vae") == tmp_path / "stabilityai" / "sd-vae-ft-mse"
    (patterns,) = asked
    assert {WEIGHTS, "config.json", f"vae/{WEIGHTS}", "vae/config.json"} <= set(patterns)
    assert not any("*" in pattern or "unet" in pattern for pattern in patterns)


def test_downloaded_model_without_an_autoencoder_is_refused(
    tmp_path: Path, open_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(hub_id: str, **_: Any) -> str:
        return str(tmp_path)

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{open_port}")
    monkeypatch.setattr("pipeline.weights.in_cache", lambda _: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert "holds no tokenizer" in refused("somebody/llm").message


def test_command_refuses_missing_weights_before_torch_is_imported(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from cli.main import main\n"
        "try:\n"
        "    main(['encode', 'm.parquet', 's.zarr', '--tokenizer', 'sd-vae'])\n"
        "except SystemExit as end:\n"
        "    print(end.code, 'torch' in sys.modules, 'diffusers' in sys.modules)\n"
    )
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": f"http://127.0.0.1:{closed_port()}",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["4", "False", "False"]
    assert done.stderr.startswith("error: tokenizer 'sd-vae'")
    assert "\nfix: " in done.stderr
    assert "Traceback" not in done.stderr
