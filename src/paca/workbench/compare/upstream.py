"""Results in the format of the method-comparison board in PEFT's repository: `run_info`, `train_info`, `meta_info`.

The board's own task counts right answers; what is counted here is next tokens of the held-out data, and `metrics` says
so. Peak memory stands where the board has what its allocator reserved.
"""

import platform
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

import torch

from paca.workbench.compare.units import PROFILE, RUN


def upstream_results(units: Iterable[Mapping[str, Any]], results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Convert every run to the format of PEFT's board; one result per method and seed, by file name."""
    units = list(units)
    peaks = {
        unit["job"]["methods"][0]["method"]: unit["result"].get("peak_bytes", 0)
        for unit in units
        if unit["job"]["kind"] == PROFILE
    }
    found = {}
    for unit in units:
        job = unit["job"]
        if job["kind"] == RUN and job["rate"] is not None:
            method = job["methods"][0]["method"]
            name = f"{method}--seed{job['seed']}"
            found[name] = _result(name, unit, peaks.get(method, 0), results)
    return found


def _result(name: str, unit: Mapping[str, Any], peak: int, results: Mapping[str, Any]) -> dict[str, Any]:
    job, found, recipe = unit["job"], unit["result"], results["recipe"]
    failed = "error" in found
    return {
        "run_info": {
            "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "total_time": found.get("train_seconds", 0.0),
            "experiment_name": name,
            "peft_branch": "main",
            "train_config": _train_config(job, found, recipe),
            "peft_config": found.get("peft_config"),
            "error_msg": found.get("error", ""),
        },
        "train_info": {
            "accelerator_memory_reserved_avg": peak,
            "accelerator_memory_max": peak,
            "accelerator_memory_reserved_99th": peak,
            "train_time": found.get("train_seconds", 0.0),
            "file_size": found.get("file_bytes", 0),
            "num_trainable_params": found.get("trained_parameters", 0),
            "num_total_params": found.get("total_parameters", 0),
            "status": "failed" if failed else "success",
            "metrics": [] if failed else _metrics(found, recipe),
        },
        "meta_info": _meta_info(results),
    }


def _train_config(job: Mapping[str, Any], found: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    training = recipe["training"]
    return {
        "model_id": recipe["model"]["name"],
        "dtype": recipe["model"]["dtype"],
        "max_seq_length": training.get("max_length"),
        "batch_size": training.get("per_device_train_batch_size"),
        "max_steps": found.get("steps"),
        "seed": job["seed"],
        "optimizer_type": training.get("optim", "AdamW"),
        "optimizer_kwargs": {"lr": job["rate"]},
    }


def _metrics(found: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    size = recipe["training"].get("per_device_train_batch_size") or 1
    training = dict(found["training_loss"])
    points = []
    for point in found["curve"]:
        past = [loss for step, loss in training.items() if step <= point["step"]]
        points.append(
            {
                "step": point["step"],
                "valid accuracy": point["accuracy"],
                "valid loss": point["loss"],
                "train loss": past[-1] if past else point["loss"],
                "train samples": point["step"] * size,
            }
        )
    last = dict(points[-1])
    last["test accuracy"] = last.pop("valid accuracy")
    last["test loss"] = last.pop("valid loss")
    forgotten = found["unrelated"]["after"] - found["unrelated"]["before"]
    return [*points, {**last, "train total tokens": found["tokens"], "forgetting": forgotten}]


def _meta_info(results: Mapping[str, Any]) -> dict[str, Any]:
    packages = {f"{name}-version": version for name, version in results["versions"].items() if name != "python"}
    hashes = {f"{name}-commit-hash": None for name in ("transformers", "peft", "datasets", "torch")}
    return {
        "model_info": {"sha": None, "created_at": None},
        "dataset_info": {str(results["recipe"]["data"]["train"]): {"sha": None, "created_at": None}},
        "package_info": {**packages, **hashes, "bitsandbytes-version": None, "bitsandbytes-commit-hash": None},
        "system_info": {
            "system": platform.system(),
            "release": platform.release(),
            "version": platform.version(),
            "machine": platform.machine(),
            "processor": results["machine"]["cpu"],
            "accelerator": results["machine"]["device"],
        },
        "pytorch_info": torch.__config__.show(),
    }
