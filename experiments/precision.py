"""The model of an experiment, in the precision that is asked for."""

from __future__ import annotations

import argparse

import torch

from steer.models import LanguageModel, load_model


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """For scripts whose answers are many."""
    # Half the time of float32 where the processor has units for it, and what GPUs serve in.
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")


def loaded(arguments: argparse.Namespace) -> LanguageModel:
    """The model that was asked for, on so many threads."""
    torch.set_num_threads(arguments.threads)
    return load_model(arguments.model, dtype=getattr(torch, arguments.dtype))
