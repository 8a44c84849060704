"""A folder that Hugging Face tools accept - config.json, model.safetensors, a model card - and its way to their Hub."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparsify.errors import SparsifyError
from sparsify.files import write_bytes, write_json
from sparsify.formats import Metadata, SparseModel, Written
from sparsify.sources import export, open_source

CONFIG, CARD, DENSE, PACKED = "config.json", "README.md", "model.safetensors", "model.sparse.safetensors"


class HubError(SparsifyError):
    """A folder could not be put on the Hub."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """What was written, and where it was put."""

    path: Path
    files: dict[str, int]  # bytes, by name
    digest: str  # of the masks
    url: str | None = None  # of the repository that it was pushed to


def export_folder(
    source: str | Path,
    out: str | Path,
    *,
    push_to_hub: str | None = None,
    packed: bool = False,
    force: bool = False,
    changes: Sequence[str] = (),
    watch: Callable[[int, int], object] | None = None,
    **options: Any,
) -> Folder:
    """Write a source as a folder, and upload it on request.

    The folder holds model.safetensors (dense, as every tool reads it), config.json and README.md, a model card with
    the figures that the source records and no others. packed: also model.sparse.safetensors. push_to_hub: repository,
    as "name/model"; needs huggingface_hub and its login. Other arguments as in `export`. Raises SparsifyError.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise HubError(f"{folder} exists and is not an empty folder. Give --force to write into it, or another --out.")
    if push_to_hub is not None:
        _hub()  # before any work is done
    given = {"force": force, "changes": changes, "watch": watch, **options}
    written = [export(source, "safetensors", folder / DENSE, **given)]
    if packed:
        written.append(export(source, "safetensors", folder / PACKED, packed=True, **given))
    model = open_source(folder / DENSE)
    write_json(folder / CONFIG, _config(model, Path(source)))
    write_bytes(folder / CARD, _card(model, folder.name, written).encode())
    files = {name: (folder / name).stat().st_size for name in (CARD, CONFIG, *(file.path.name for file in written))}
    result = Folder(folder, files, written[0].digest)
    return result if push_to_hub is None else dataclasses.replace(result, url=push(folder, push_to_hub))


def push(folder: str | Path, repository: str) -> str:
    """Upload a folder's files to a model repository on the Hub, which is made where there is none; return its URL."""
    hub = _hub()
    try:
        api = hub.HfApi()
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="sparsify export")
    except Exception as error:  # its own kinds, and those of whichever HTTP library it uses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubError(
            f"{folder} could not be uploaded to {repository} ({reason}). The folder itself is whole. Check the "
            f"name, the connection and your login (hf auth login), and run the command again."
        ) from None
    return str(url)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(
            "Uploading needs the package huggingface_hub, which is not installed. Install it with "
            "pip install 'sparsify-rigl[hub]', or leave --push-to-hub away and upload the folder yourself."
        ) from None
    return huggingface_hub


def _config(model: SparseModel, source: Path) -> dict[str, Any]:
    """The source's own configuration where another program wrote it, our record otherwise."""
    if model.metadata is not None:
        return {"model_type": "sparsify", **model.metadata.model_dump(exclude={"live_zeros"})}
    own = source / CONFIG
    try:
        found = json.loads(own.read_bytes()) if own.is_file() else {}
    except ValueError:
        raise HubError(f"{own} is not JSON. It was damaged: fetch it again.") from None
    return found if isinstance(found, dict) else {}


def _card(model: SparseModel, name: str, written: Sequence[Written]) -> str:
    """A model card: front matter in YAML, of which JSON is a part, and the figures as a table."""
    record = model.metadata
    front: dict[str, Any] = {"library_name": "sparsify", "tags": ["sparse"]}
    masks = model.masks()
    total, kept = sum(mask.size for mask in masks.values()), sum(int(mask.sum()) for mask in masks.values())
    rows = [("sparsity", f"{1 - kept / max(1, total):.4%} of {total:,} weights"), ("non-zero weights", f"{kept:,}")]
    if record is not None:
        front |= _front(record, name)
        rows = [*_facts(record), *rows, ("FLOPs of one sample", f"{record.flops:,} ({record.dense_flops:,} dense)")]
        rows += [(key.replace("_", " "), f"{value:.6g}") for key, value in record.training.items()]
    rows += [(f"`{file.path.name}`", f"{file.size:,} bytes") for file in written]
    rows.append(("mask digest", f"`{written[0].digest}`"))
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    return (
        f"---\n{lines}\n---\n\n# {name}\n\nSparse weights, written by `sparsify`.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f'```python\nfrom safetensors.torch import load_file\n\nweights = load_file("{DENSE}")\n```\n'
    )


def _front(record: Metadata, name: str) -> dict[str, Any]:
    """What the Hub files a model under: task, data set and, where the model was trained, its accuracy."""
    data = record.network.recipe["data"]["name"]
    task = "text-generation" if record.network.vocabulary else "image-classification"
    front = {
        "pipeline_tag": task,
        "datasets": [data],
        "tags": ["sparse", record.method, record.network.recipe["model"]["name"]],
    }
    accuracy = record.training.get("test_accuracy")
    if accuracy is not None:
        metric = {"type": "accuracy", "value": accuracy}
        result = {"task": {"type": task}, "dataset": {"type": data, "name": data}, "metrics": [metric]}
        front["model-index"] = [{"name": name, "results": [result]}]
    return front


def _facts(record: Metadata) -> list[tuple[str, str]]:
    recipe = record.network.recipe
    return [
        ("network", recipe["model"]["name"]),
        ("data", recipe["data"]["name"]),
        ("origin", record.origin),
        ("method", f"{record.method}, {record.distribution}"),
    ]
