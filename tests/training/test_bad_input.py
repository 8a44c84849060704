"""What goes wrong in training ends in one clear message, and nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsify.data import digits
from sparsify.errors import DataError, DivergedError, RecipeError, UnknownNameError
from sparsify.files import DiskError
from sparsify.recipe import load_recipe
from sparsify.training.checkpoint import read_checkpoint
from sparsify.training.loop import train


def test_loss_that_is_not_finite_stops_the_run_and_says_what_to_change(tmp_path):
    recipe = load_recipe(None, ["training.steps=400", "optimizer.lr=1e30", "training.evaluate_every=100.0"])
    with pytest.raises(DivergedError, match=r"training loss became .* Lower the learning rate \(--set optimizer.lr="):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run/model.safetensors").exists()


def test_divergence_leaves_the_checkpoint_from_before(tmp_path):
    """The learning rate explodes after the first epochs: what they saved can still be read and exported."""
    changes = ["training.steps=400", "training.evaluate_every=2.0", "optimizer.lr=0.05"]
    changes += ["learning_rate.schedule=step", "learning_rate.milestones=[0.2]", "learning_rate.gamma=1e30"]
    with pytest.raises(DivergedError, match="The last checkpoint is from before that"):
        train(load_recipe(None, changes), tmp_path / "run")
    content = read_checkpoint(tmp_path / "run/checkpoint.pt")
    assert 0 < content["progress"]["step"] <= 80
    assert all(bool(tensor.isfinite().all()) for tensor in content["model"].values())


def test_unknown_optimizer_and_key_that_it_does_not_take(tmp_path):
    with pytest.raises(UnknownNameError, match=r"no optimizer called 'sdg'. Did you mean 'sgd'"):
        train(load_recipe(None, ["optimizer.name=sdg"]), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"no key of the optimizer adamw called 'momentum'"):
        train(load_recipe(None, ["optimizer.name=adamw"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_option_that_the_architecture_does_not_take(tmp_path):
    with pytest.raises(RecipeError, match=r"no key in \[model\] called 'hiden'. Did you mean 'hidden'"):
        train(load_recipe(None, ["model.hiden=[3]"]), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"'model.hidden.0' = 'wide' is not possible"):
        train(load_recipe(None, ["model.hidden=['wide']"]), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"growth_batches = 30 is more than the delta_t = 20 steps"):
        load_recipe(None, ["topology.growth_batches=30"])
    with pytest.raises(RecipeError, match=r"\[model\]: depth = 23 must be 6 n \+ 4"):
        train(load_recipe("wrn-22-2-cifar10", ["data.name=digits", "model.depth=23"]), tmp_path / "run")


def test_device_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match=r"The device 'tpu' cannot be used.*Use --device cpu"):
        train(None, tmp_path / "run", device="tpu")


def test_missing_data_offline_says_which_files_go_where(tmp_path):
    """No proxy answers on port 9, so the download fails as it does without a network."""
    code = """
import os, sys
os.environ["HTTP_PROXY"] = os.environ["HTTPS_PROXY"] = "http://127.0.0.1:9"
os.environ["http_proxy"] = os.environ["https_proxy"] = "http://127.0.0.1:9"
from sparsify.cli import main
sys.argv = ["sparsify", "train", "lenet-300-100-mnist", "--data", "data", "--out", "run"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "put these by hand into data/mnist: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz" in done.stderr
    assert not (tmp_path / "run").exists()


def digits_in_place_of_mnist(data: Path) -> Path:
    """The small files that ship, under MNIST's names; returns their folder."""
    source = Path(digits.__file__).parent / "optical_digits"
    folder = data / "mnist"
    folder.mkdir()
    for part in ("train", "t10k"):
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            shutil.copy(source / f"{kind}.gz", folder / f"{part}-{kind}.gz")
    return folder


def test_truncated_idx_file(tmp_path):
    path = digits_in_place_of_mnist(tmp_path) / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is damaged: .* Delete the file"):
        train(load_recipe("lenet-300-100-mnist"), tmp_path / "run", data=tmp_path)


def test_another_data_set_under_the_name(tmp_path):
    digits_in_place_of_mnist(tmp_path)
    with pytest.raises(DataError, match=r"shape \(1797, 1, 8, 8\), not \(60000, 1, 28, 28\)"):
        train(load_recipe("lenet-300-100-mnist"), tmp_path / "run", data=tmp_path)


def small_disk(tmp_path: Path, size: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a folder `full` that is a disk of `size`; skip where that cannot be made."""
    (tmp_path / "full").mkdir()
    mount = f"mount -t tmpfs -o size={size} tmpfs full"
    for unshare in (["unshare", "-m"], ["unshare", "-rm"]):
        if shutil.which("unshare") and subprocess.run([*unshare, "sh", "-c", mount], cwd=tmp_path).returncode == 0:
            command = [*unshare, "sh", "-c", f"{mount} && {script}"]
            return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    pytest.skip("a small disk needs the right to mount one")


def test_disk_full_keeps_the_last_checkpoint(tmp_path):
    """The first run ends well on a disk that has no room for a second one."""
    train_command = f"{sys.executable} -m sparsify train --steps 60 --set training.evaluate_every=1.0"
    script = f"""
{train_command} --out full/first > /dev/null || exit 90
sha256sum full/first/* > before
{train_command} --out full/second; echo code $?
sha256sum --check --quiet before || echo changed
find full -name '*.part'
"""
    done = small_disk(tmp_path, "1300k", script)
    assert "code 2" in done.stdout, done.stdout + done.stderr
    assert "The disk is full" in done.stderr and "Free some space" in done.stderr
    assert "changed" not in done.stdout and ".part" not in done.stdout


def test_files_are_replaced_whole_or_not_at_all(tmp_path):
    from sparsify.files import replacing, write_bytes

    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_bytes(b"half of the n")
        raise RuntimeError("interrupted")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(DiskError, match="Check that .* is a folder that you may write to"):
        write_bytes(path / "below", b"x")
