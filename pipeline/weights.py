"""Where a tokenizer's weights are: a known name, a path or a hub id, resolved to a local directory.

Nothing heavy is imported here, so that a tokenizer that cannot be had is refused within a second.
"""

import contextlib
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

from pipeline.errors import ArtefactError, UsageError

TINY_VAE = Path(__file__).parent / "assets" / "tiny-vae"

# Published weights by the short names used in papers and in this project.
HUB_IDS = {
    "sd-vae": "stabilityai/sd-vae-ft-mse",
    "taesd": "madebyollin/taesd",
    "taesd3": "madebyollin/taesd3",
}
# Full diffusion pipelines keep their autoencoder in one of these folders.
SUBFOLDERS = ("vae", "vqvae", "movq")
SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_PATTERNS = [
    f"{folder}{name}"
    for folder in ("", *(f"{name}/" for name in SUBFOLDERS))
    for name in ("config.json", _WEIGHTS)
]
_CONNECT_TIMEOUT_S = 0.5


def locate(tokenizer: str) -> Path:
    """The local directory (with config.json) or single file that holds a tokenizer's weights.

    tokenizer  `tiny-vae`, `sd-vae`, `taesd`, `taesd3`, a directory in diffusers' format, a
               single-file checkpoint, or a hub id `owner/name`; a hub id is looked up in the hub's
               local cache first and downloaded only when it is not there
    raises     ArtefactError when it is none of these or its weights are not to be had, saying
               where they were looked for and how to get them; UsageError for `vq`, a mere kind
    """
    if tokenizer == "tiny-vae":
        return TINY_VAE
    if tokenizer == "vq":
        raise UsageError(
            "tokenizer 'vq' is a kind of tokenizer, and no weights of that kind are standard",
            "--tokenizer DIR_OR_HUB_ID of any diffusers VQModel",
        )
    path = Path(tokenizer).expanduser()
    if tokenizer not in HUB_IDS and path.exists():
        return _from_path(path)
    hub_id = HUB_IDS.get(tokenizer, tokenizer)
    if (
        hub_id.count("/") != 1
        or hub_id.startswith((".", "/", "~"))
        or hub_id.endswith(SINGLE_FILE_SUFFIXES)
    ):
        raise _nothing_by_that_name(tokenizer)
    return _from_hub(tokenizer, hub_id)


def packaged() -> bool:
    """Whether the weights of `tiny-vae` came with this package."""
    return _is_model(TINY_VAE)


def in_cache(hub_id: str) -> Path | None:
    """The directory of a hub id in the hub's local cache, or None where it is not there whole.

    raises  ValueError for words that cannot be a hub id
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(hub_id, allow_patterns=_PATTERNS, local_files_only=True)
        return _from_path(Path(folder))
    except (LocalEntryNotFoundError, ArtefactError):
        return None


def hub_reachable() -> bool:
    """Whether a download could begin now; known within half a second."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _reachable(constants.ENDPOINT)


def _from_path(path: Path) -> Path:
    if path.is_file() and path.suffix in SINGLE_FILE_SUFFIXES:
        # The weights file of a diffusers directory, named directly.
        return path.parent if path.name == _WEIGHTS and _is_model(path.parent) else path
    for folder in (path, *(path / name for name in SUBFOLDERS)):
        if _is_model(folder):
            return folder
    raise ArtefactError(
        f"{path} holds no tokenizer: no config.json with {_WEIGHTS}, neither there nor in its "
        f"{', '.join(SUBFOLDERS)} folders",
        f"give a directory with config.json and {_WEIGHTS}, or a single-file checkpoint "
        f"({', '.join(SINGLE_FILE_SUFFIXES)})",
    )


def _is_model(folder: Path) -> bool:
    # Both: an interrupted download leaves the small file without the large one.
    return (folder / "config.json").is_file() and (folder / _WEIGHTS).is_file()


def _from_hub(tokenizer: str, hub_id: str) -> Path:
    try:
        cached = in_cache(hub_id)
    except ValueError as error:
        raise _nothing_by_that_name(tokenizer) from error
    if cached:
        return cached
    from huggingface_hub import constants, snapshot_download

    get_it = (
        f"on a machine with network run `hf download {hub_id} --local-dir DIR`, "
        f"then --tokenizer DIR; or --tokenizer tiny-vae, which needs no download"
    )
    looked = f"tokenizer {tokenizer!r} ({hub_id}) is not in the cache {constants.HF_HUB_CACHE}"
    if tokenizer not in HUB_IDS:
        looked = (
            f"tokenizer {tokenizer!r} is no path, and not in the cache {constants.HF_HUB_CACHE}"
        )
    if constants.HF_HUB_OFFLINE:
        raise ArtefactError(f"{looked}, and HF_HUB_OFFLINE forbids a download", get_it)
    if not hub_reachable():
        raise ArtefactError(f"{looked}, and {constants.ENDPOINT} cannot be reached", get_it)
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=_PATTERNS))
    except Exception as error:  # of whichever HTTP library the hub client is built on
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ArtefactError(f"{looked}, and its download failed: {reason}", get_it) from error
    return _from_path(folder)


def _nothing_by_that_name(tokenizer: str) -> ArtefactError:
    names = ", ".join(["tiny-vae", *HUB_IDS])
    return ArtefactError(
        f"tokenizer {tokenizer!r} is neither a known name ({names}), an existing path nor a hub id",
        "--tokenizer NAME, a directory with config.json, or OWNER/NAME",
    )


def _reachable(endpoint: str) -> bool:
    """Whether the hub (or the proxy in front of it) takes a connection, known within half a second.

    The hub client itself retries for tens of seconds before it gives up.
    """
    target = urllib.parse.urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urllib.parse.urlsplit(proxy)
    address = (target.hostname or "", target.port or (443 if target.scheme == "https" else 80))
    connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=_CONNECT_TIMEOUT_S).close()
            connected.set()

    # In a thread, because name resolution takes no timeout.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(_CONNECT_TIMEOUT_S)
    return connected.is_set()
