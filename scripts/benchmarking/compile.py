"""What of each family torch.compile takes as whole graphs, as `generation.compile` asks for it.

Dynamo captures the graphs on a CPU as on a GPU; only what they are turned into differs.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import click
import torch
from torch._dynamo.testing import CompileCounter

from actors.models.families import table
from actors.models.generator import Generator
from actors.models.pipeline import compile_parts
from balancer.errors import WeightsError, first_line
from balancer.scheduling.prompts import Request
from benchmarking.record import keep_option, save
from tiny_pipelines import PIPELINES, save_pipeline

SIDE, STEPS, BATCH, GUIDANCE = 64, 2, 2, 5.0
HIDREAM_SIDE = 8
SHORT, LONG = "a burnt pizza", "a very long prompt of a basic pizza with olives"


@click.command("compile")
@keep_option
@click.option("--family", "chosen", multiple=True, help="Only these.")
def command(chosen: tuple[str, ...]) -> None:
    """Every family: is it compiled as whole graphs, once, whatever the prompt?"""
    warnings.simplefilter("ignore")
    table.HIDREAM_SIDE = HIDREAM_SIDE
    save("compile", {"side": SIDE, "families": [_family(name) for name in chosen or PIPELINES]})


def _family(name: str) -> dict[str, Any]:
    torch._dynamo.reset()
    graphs = CompileCounter()
    with tempfile.TemporaryDirectory() as folder:
        save_pipeline(name, Path(folder))
        generator = Generator(
            folder, None, None, SIDE, SIDE, STEPS, BATCH, device="cpu", dtype="float32", threads=1
        )
    if generator.family.fixed_pixels:
        generator._pipeline.default_sample_size = HIDREAM_SIDE
    compile_parts(generator._pipeline, backend=graphs)
    counts: list[int] = []
    fault = ""
    try:
        for prompt, guidance in ((SHORT, GUIDANCE), (SHORT, GUIDANCE), (LONG, GUIDANCE), (LONG, 0.0)):
            generator.generate([Request(prompt, "", len(counts))], guidance)
            counts.append(graphs.frame_count)
    except (torch._dynamo.exc.TorchDynamoException, WeightsError) as error:
        fault = f"{type(error).__name__}: {first_line(error)[:100]}"
    known = dict(zip(("first", "same_again", "other_prompt", "no_guidance"), counts, strict=False))
    return {"family": name, "graphs": known, "fault": fault, "refused": bool(generator.family.compile_fault)}
