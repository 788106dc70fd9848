"""SDXL of full size on a CUDA GPU: a plain diffusers loop, a run's generator, and whole runs beside ViT-L/14.

Weights are random, which needs the same arithmetic as trained ones. The physical limit is the measured rate
of this GPU's matrix units divided by the arithmetic of an image: 98.06 TFLOP at 512 x 512, 30 steps with
guidance (30 x 2 x 1.589 in the UNet, 2.515 in the decoder, the rest in the text encoders; counted by torch's
FlopCounterMode).
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import diffusers
import torch

from actors.models.generator import Generator
from actors.run import run
from balancer.config.schema import Config
from balancer.scheduling.prompts import Request
from benchmarking.random_models import save_sdxl, save_verifier
from benchmarking.record import keep_option, median_s, save
from benchmarking.watch import watched

SIDE = 512
UNET_TFLOP, DECODER_TFLOP, TEXT_TFLOP = 1.5888, 2.5145, 0.1112
SETTINGS = {"30 steps with guidance": (30, 7.5), "4 steps without guidance": (4, 0.0)}
BATCHES = (1, 4, 8, 16)
PROMPT, NEGATIVE = "a photo of a burnt pizza, dim", "bright"


@click.command("sdxl")
@keep_option
@click.option("--batches", default=3, show_default=True, help="Batches timed for each figure.")
@click.option("--images", default=240, show_default=True, help="Images of the whole run.")
@click.option("--compiled/--eager-only", default=True, show_default=True)
@click.option("--tiny", is_flag=True, help="Tiny models on any device, to try the script; nothing is saved.")
def command(batches: int, images: int, compiled: bool, tiny: bool) -> None:
    """Images a second, share of the physical limit, peak memory and idle gaps. Needs a CUDA GPU."""
    if not tiny and not torch.cuda.is_available():
        raise click.ClickException("this benchmark needs a CUDA GPU, and torch sees none")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder), device, batches, tiny)
        figures = bench.figures(images, compiled)
    if tiny:
        click.echo(json.dumps(figures, indent=2))
    else:
        save("sdxl", figures, device=torch.cuda.get_device_name())


class _Bench:
    def __init__(self, folder: Path, device: torch.device, batches: int, tiny: bool) -> None:
        self.folder, self.device, self.batches, self.tiny = folder, device, batches, tiny
        self.side = 64 if tiny else SIDE
        self.tflops = _matrix_tflops(device)
        save_sdxl(folder / "fp16", torch.float16, device, tiny)
        save_sdxl(folder / "sdxl", torch.bfloat16, device, tiny)
        save_verifier(folder / "verifier", tiny)

    def figures(self, images: int, compiled: bool) -> dict[str, Any]:
        return {
            "side": self.side,
            "measured_bf16_tflop_s": round(self.tflops, 1),
            "settings": {
                name: {
                    "limit_images_per_s": round(self.tflops / _tflop(*steps), 3),
                    "cases": self._plain(*steps) + self._generators(*steps, compiled),
                }
                for name, steps in SETTINGS.items()
            },
            "whole_run": self._whole_run(images, compiled),
        }

    def _case(
        self, name: str, steps: int, guidance: float, batch: int, work: Callable[[], object]
    ) -> dict[str, Any]:
        try:
            work()  # warm, and compiled
            _reset_peak(self.device)
            seconds = median_s(work, self.batches)
        except torch.cuda.OutOfMemoryError:
            return {"case": name, "batch": batch, "images_per_s": None, "note": "out of memory"}
        figures = {
            "case": name,
            "batch": batch,
            "images_per_s": round(batch / seconds, 3),
            "share_of_limit": round(batch / seconds * _tflop(steps, guidance) / self.tflops, 4),
            "peak_memory_gb": _peak_gb(self.device),
        }
        click.echo(json.dumps(figures), err=True)
        return figures

    def _plain(self, steps: int, guidance: float) -> list[dict[str, Any]]:
        """As a user of diffusers writes it, and with the settings of the earlier tool."""
        arguments = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "height": self.side,
            "width": self.side,
        }
        cases = []
        for name, prepare in (
            ("diffusers, float16, one image at a time", lambda pipeline: pipeline.to(self.device)),
            ("diffusers, CPU offload and attention slicing", self._sliced),
        ):
            pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(
                self.folder / "fp16", dtype=torch.float16, use_safetensors=True
            )
            pipeline.set_progress_bar_config(disable=True)
            prepare(pipeline)
            work = functools.partial(pipeline, PROMPT, negative_prompt=NEGATIVE, **arguments)
            cases.append(self._case(name, steps, guidance, 1, work))
            del pipeline, work
        return cases

    def _sliced(self, pipeline: Any) -> None:
        if self.device.type == "cuda":
            pipeline.enable_model_cpu_offload()
        pipeline.enable_attention_slicing()

    def _generators(self, steps: int, guidance: float, compiled: bool) -> list[dict[str, Any]]:
        cases = []
        for compile_it in (False, True) if compiled else (False,):
            for batch in BATCHES:
                generator = Generator(
                    str(self.folder / "sdxl"),
                    None,
                    None,
                    self.side,
                    self.side,
                    steps,
                    batch,
                    compiled=compile_it,
                )
                requests = [Request(PROMPT, NEGATIVE, seed) for seed in range(batch)]
                name = f"generator, {'compiled' if compile_it else 'eager'}"
                work = functools.partial(generator.generate, requests, guidance)
                cases.append(self._case(name, steps, guidance, batch, work))
                del generator, work
                _forget(self.device)
        return cases

    def _whole_run(self, images: int, compiled: bool) -> dict[str, Any]:
        """Generator, verifier of full size on the same GPU, writer and log, one attempt an image."""
        dataset = self.folder / "dataset"
        (dataset / "pizza").mkdir(parents=True)
        config = Config.model_validate(self._run_config(images, compiled, dataset))
        began = time.time()
        with watched() as seen:
            result = run(config, self.folder / "run")
        [calls] = seen.spans["generator"]
        first, last = calls[0][0], max(span[1] for actor in seen.spans["writer"] or [calls] for span in actor)
        gaps = sorted(later[0] - earlier[1] for earlier, later in pairwise(calls))
        rate = result.candidates / (last - first)
        steps, guidance = SETTINGS["30 steps with guidance"]
        return {
            "candidates": result.candidates,
            "compiled": compiled,
            "start_s": round(first - began, 1),
            "images_per_s": round(rate, 3),
            "share_of_limit": round(rate * _tflop(steps, guidance) / self.tflops, 4),
            "generator_busy": round(sum(end - start for start, end in calls) / (calls[-1][1] - first), 4),
            "idle_gap_ms_p50": round(1000 * gaps[len(gaps) // 2], 2),
            "idle_gap_ms_p99": round(1000 * gaps[int(0.99 * len(gaps))], 2),
        }

    def _run_config(self, images: int, compiled: bool, dataset: Path) -> dict[str, Any]:
        steps, guidance = SETTINGS["30 steps with guidance"]
        return {
            "dataset": {"path": str(dataset)},
            "classes": {"pizza": {"prompts": [PROMPT, f"{PROMPT}, bright"]}},
            "target": {"per_class": images},
            "generation": {
                "model": str(self.folder / "sdxl"), "width": self.side, "height": self.side, "steps": steps,
                "guidance": guidance, "batch_size": 8, "compile": compiled,
            },
            "verification": {"model": str(self.folder / "verifier"), "threshold": 0.0, "unjudged": ["class"]},
            "attempts": {"max": 1, "give_up_below": 0},
            "output": {"rejected_per_reason": 0},
            "actors": {"generators": 1},
        }  # fmt: skip


def _tflop(steps: int, guidance: float) -> float:
    """An image of 512 x 512; guidance doubles what the UNet and the text encoders do."""
    passes = 2 if guidance > 1 else 1
    return steps * passes * UNET_TFLOP + DECODER_TFLOP + passes * TEXT_TFLOP


def _matrix_tflops(device: torch.device) -> float:
    """The rate of this device in bfloat16 on large square matrices, in TFLOP/s."""
    side = 8192 if device.type == "cuda" else 512
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        for _ in range(10):
            one @ other
        if device.type == "cuda":
            torch.cuda.synchronize()

    multiply()
    return 10 * 2 * side**3 / median_s(multiply) / 1e12


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_gb(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None


def _forget(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
