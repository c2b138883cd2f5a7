"""Units of a comparison that nobody ran, so that a report of them is made in no time."""

from paca.workbench.compare.report import finite
from paca.workbench.compare.summary import summarize

NASTY = "lora(target_modules=</script><b>)"


def entry(method, rank=4):
    return {"method": method, "rank": None if method == "frozen" else rank, "targets": "'all-linear'", "arguments": {}}


def unit(kind, method, result, **values):
    return {"job": {"kind": kind, "methods": [entry(method)], **values}, "result": result}


def profile(method, weights, optimizer, activations):
    kinds = {
        "parameters": weights,
        "gradients": 0,
        "optimizer": optimizer,
        "activations": activations,
        "temporaries": 5,
    }
    kinds = {kind: 2**20 * size for kind, size in kinds.items()}
    found = {"kept_bytes": 2**20 * activations, "peak_bytes": sum(kinds.values()), "peak_by_kind": kinds}
    return unit("profile", method, {**found, "trained_parameters": 1000 * optimizer, "total_parameters": 10**6})


def run(method, seed, rate, last, steps=20):
    points = [(0, 3.0), (steps // 2, (3.0 + last) / 2), (steps, last)]
    curve = [
        {"step": step, "seconds": 0.5 * step, "loss": loss, "accuracy": 1 / loss, "tokens": 99}
        for step, loss in points
    ]
    result = {
        "curve": curve if rate else curve[:1],
        "training_loss": [
            [step, 3.1 + (last - 3.1) * step / steps + 0.1 * (-1) ** step] for step in range(1, steps + 1)
        ],
        "unrelated": {"before": 2.0, "after": 2.0 + 0.1 * (3 - last)},
        "steps": steps,
        "tokens": 2000,
        "train_seconds": 10.0,
        "trained_parameters": 1000,
        "total_parameters": 10**6,
        "file_bytes": 4000,
        "peft_config": {"peft_type": "LORA"},
        "latency_ms": 12.0,
        "merge_ms": 3.0,
        "merged_latency_ms": 10.0,
        "merged_differs": 1e-6,
    }
    return unit("run", method, result, seed=seed, rate=rate, points=2)


def timing(**ratios):
    methods = {
        name.replace("_", " "): {
            "step_ms": 100 * ratio,
            "forward_ms": 40 * ratio,
            "backward_ms": 55 * ratio,
            "optimizer_ms": 5 * ratio,
            "to_floor": ratio,
            "to_floor_error": ratio / 100,
            "tokens_per_second": 1000 / ratio,
        }
        for name, ratio in ratios.items()
    }
    job = {"kind": "timing", "methods": [entry(name) for name in methods if name != "frozen again"], "rounds": 9}
    return {"job": job, "result": {"methods": methods, "rounds": 9}}


def units():
    throughput = {
        "points": [
            {"sequences": n, "peak_bytes": n, "tokens_per_second": 9.0 * n, "sequences_per_second": n, "step_ms": 1.0}
            for n in (1, 2, 4)
        ],
        "tokens": 16,
        "limit": 9,
    }
    operations = {"forward": 1e9, "backward": 2e9}
    return [
        profile("frozen", 500, 0, 200),
        profile("paca", 510, 20, 205),
        profile("lora", 510, 20, 260),
        unit("profile", NASTY, {"error": "no module <here>", "out_of_memory": False}),
        run("frozen", 3, None, 3.0),
        *(run("paca", seed, 5e-3, 2.5 + 0.01 * seed) for seed in (3, 4, 5)),
        *(run("lora", seed, 2e-3, 2.51 + 0.02 * seed) for seed in (3, 4, 5)),
        timing(frozen=1.0, frozen_again=1.01, paca=1.05, lora=1.2),
        *(unit("throughput", method, throughput, limit=9) for method in ("paca", "lora")),
        *(unit("operations", method, operations) for method in ("paca", "lora")),
        unit("max-seq", "paca", {"tokens": 4096, "all_positions": False, "peak_bytes": {}, "limit": 9}, limit=9),
        unit("max-seq", "lora", {"tokens": 2048, "all_positions": False, "peak_bytes": {}, "limit": 9}, limit=9),
    ]


def results(of=None):
    """What results.json would hold of units; of all those above when omitted."""
    recipe = {
        "model": {"name": "a-model", "dtype": "float32", "quantization": None},
        "data": {"train": ["one.txt", "two<three>.txt"]},
        "method": {"name": "paca", "r": 4},
        "training": {"max_steps": 20, "max_length": 16},
        "seed": 3,
    }
    machine = {"cpu": "A processor", "cores": 2, "threads": 2, "load_average": 0.1, "device": "cpu"}
    return finite(
        {
            **summarize(units() if of is None else of),
            "recipe": recipe,
            "match": "parameters",
            "machine": machine,
            "versions": {"python": "3.11", "torch": "2.14"},
        }
    )
