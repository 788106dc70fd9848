"""Train the models in balancer/embedded, from rendering their pictures to exporting the weights.

    python scripts/train_embedded.py --work DIR            every stage, about an hour on 2 cores
    python scripts/train_embedded.py --work DIR generator  one stage; the earlier ones must be done

After an interruption, the same command resumes from the last checkpoint in DIR.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import torch
import torch.distributed as dist
from diffusers import AutoencoderTiny

from embedded_training import autoencoder, data, generator, rubbish, verifier
from embedded_training.loop import Loop

STAGES = ("render", "autoencoder", "verifier", "generator")
EMBEDDED = Path(__file__).resolve().parent.parent / "balancer" / "embedded"
TRAINING_RENDERS = 12_288
CALIBRATION_RENDERS = 2_048
IMITATIONS = 2_048


@click.command()
@click.argument("stages", nargs=-1, type=click.Choice(STAGES))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Checkpoints, renders.")
@click.option("--out", type=click.Path(path_type=Path), default=EMBEDDED, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ...")
@click.option("--threads", type=int, help="All processors if not given.")
@click.option(
    "--autoencoder",
    "trained",
    type=click.Path(path_type=Path),
    help="A trained autoencoder's folder, such as that of the shipped generator, instead of training one. The"
    " shipped one is what its stage trained, in half precision: pictures differ in their last bits.",
)
@click.option("--autoencoder-steps", default=1_500, show_default=True)
@click.option("--verifier-steps", default=1_000, show_default=True)
@click.option("--generator-steps", default=2_900, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(1, 8),
    default=2,
    show_default=True,
    help="Processes that share the UNet's batches on a CPU; their number decides which pictures are drawn.",
)
def main(
    stages: tuple[str, ...],
    work: Path,
    out: Path,
    device: str,
    threads: int | None,
    trained: Path | None,
    autoencoder_steps: int,
    verifier_steps: int,
    generator_steps: int,
    workers: int,
) -> None:
    """Train the embedded models, all STAGES or the given ones."""
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads or os.cpu_count() or 1)
    target = torch.device(device)
    renders = _renders(work)
    wanted = stages or STAGES
    if wanted == ("render",):
        return
    first = Loop(autoencoder_steps, target)
    pictures, latents = _autoencoder(renders, work, first, trained)
    if "verifier" in wanted:
        calibration = data.load_or_render(
            work / "calibration.npy", data.CALIBRATION_SEEDS, CALIBRATION_RENDERS
        )
        imitations = verifier.imitate(pictures.cpu(), renders, IMITATIONS)
        junk = rubbish.load_or_make(work / "rubbish.pt", renders, pictures.cpu(), latents)
        loop = Loop(verifier_steps, target)
        verifier.train_verifier(renders, calibration, imitations, junk, work, out / "verifier", loop)
    if "generator" in wanted:
        # Processes of one thread each do more than one process of many: a model this small gives
        # the second thread little to do between two meetings with the first.
        count = workers if target.type == "cpu" else 1
        loop = Loop(generator_steps, target)
        with tempfile.TemporaryDirectory() as meeting:
            job = (count, Path(meeting) / "store", work, out / "generator", first, trained, loop)
            with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
                running = [pool.submit(_generator_worker, number, *job) for number in range(count)]
                for worker in running:
                    worker.result()


def _generator_worker(
    number: int,
    count: int,
    store: Path,
    work: Path,
    folder: Path,
    first: Loop,
    trained: Path | None,
    loop: Loop,
) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    renders = _renders(work)
    pictures, latents = _autoencoder(renders, work, first, trained)
    dist.init_process_group("gloo", f"file://{store}", rank=number, world_size=count)
    generator.train_generator(renders, latents, pictures, work, folder, loop)
    dist.destroy_process_group()


def _renders(work: Path) -> data.Renders:
    return data.load_or_render(work / "training.npy", data.TRAINING_SEEDS, TRAINING_RENDERS)


def _autoencoder(
    renders: data.Renders, work: Path, loop: Loop, trained: Path | None
) -> tuple[AutoencoderTiny, torch.Tensor]:
    """Trained, or from its checkpoint where it is done already, or from the folder `trained`."""
    if trained is None:
        pictures = autoencoder.train_autoencoder(renders, work, loop)
    else:
        pictures = AutoencoderTiny.from_pretrained(trained, use_safetensors=True, torch_dtype=torch.float32)
        pictures = pictures.to(loop.device).eval().requires_grad_(False)
    name = f"latents-{loop.steps}.pt" if trained is None else "latents-trained.pt"
    latents = autoencoder.encode_all(pictures, renders, work / name)
    # Gives latents unit spread; the pipeline divides by it before decoding.
    pictures.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 4))
    return pictures, latents


if __name__ == "__main__":
    main()
