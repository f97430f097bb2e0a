"""The memory and the disk that a run needs, beside what there is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from sdft.benchmarks import HarnessBenchmark
from sdft.benchmarks.drift import Drift
from sdft.engines import RaySettings, TransformersSettings, VLLMSettings
from sdft.engines.transformers import SCORED_ROWS
from sdft.errors import counted
from sdft.memory import (
    GIB,
    MOST_ROWS,
    USABLE,
    DeviceName,
    Shape,
    bytes_of,
    free_memory,
    gpu_count,
    gpu_size,
    guess_device,
    rows_that_fit,
    shape_of,
)
from sdft.models import resolve
from sdft.needs import measures_model
from sdft.planning.lines import Line
from sdft.planning.sample import Sample, engines_of, loads
from sdft.recipe import LoraConfig, Recipe

BYTES_A_TOKEN = 5
"""Of text, with what stands around it in a file."""
USUAL_PROMPT = 512
"""Tokens, where no sample tells."""


def memory(recipe: Recipe, sample: Sample | None, processes: int) -> Iterator[Line]:
    """What each engine and training take, each beside what the device has."""
    engines = {section: engine for section, engine in engines_of(recipe).items() if loads(engine)}
    if not engines and not recipe.methods and not measures_model(recipe):
        return
    shape = shape_of(resolve(recipe.model))
    if shape is None:
        yield Line("memory", "not known for this architecture")
        return
    device = guess_device(recipe.model.device)
    free = free_memory(device)
    weights = _size(shape.weight_bytes(recipe.model.dtype, device))
    if recipe.methods or measures_model(recipe) or any(e.name == "transformers" for e in engines.values()):
        has = "" if free is None else f", which has {_size(free)} free"
        yield Line("memory", f"the model's weights take {weights} on {device}{has}")
    for section, engine in engines.items():
        row = _longest(recipe, sample, section)
        drifts = (
            section == "evaluate" and recipe.methods and any(isinstance(b, Drift) for b in recipe.evaluate.benchmarks)
        )
        if isinstance(engine, TransformersSettings):
            told = _with_transformers(engine, recipe, shape, row, bool(drifts), free)
        elif isinstance(engine, RaySettings):
            told = _with_ray(engine, recipe, shape, row, bool(drifts), free)
        else:
            assert isinstance(engine, VLLMSettings)
            told = _with_vllm(engine, recipe, shape, row)
        yield Line("memory", f"{section}, {engine.name}: {told}")
    for benchmark in recipe.evaluate.benchmarks:
        if isinstance(benchmark, HarnessBenchmark):
            yield Line("memory", f"evaluate, {benchmark.called}: {weights}, and what it computes at once (batch_size)")
    if recipe.methods:
        yield Line("memory", f"train: {_to_train(recipe, shape, sample, processes, free)}")


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _too_little(need: float, free: int | None, way_out: str) -> str:
    return "" if free is None or need < free else f": too little, {way_out}"


def _longest(recipe: Recipe, sample: Sample | None, section: str) -> int:
    """Tokens of the longest row that is likely: prompts as in the sample, replies as long as they may be."""
    longest = [recipe.distill.max_new_tokens]
    if section == "evaluate":
        asked = [b for b in recipe.evaluate.benchmarks if not isinstance(b, HarnessBenchmark)]
        longest = [(b.sampling or recipe.evaluate.sampling).max_new_tokens for b in asked]
    return max(longest, default=0) + (sample.longest_prompt if sample else USUAL_PROMPT)


def _one_engine(
    engine: TransformersSettings,
    recipe: Recipe,
    shape: Shape,
    row: int,
    drifts: bool,
    device: DeviceName,
    free: int | None,
) -> tuple[float, str]:
    """Bytes of one engine `transformers`, and what they are for. `free` is what it may fill up with rows."""
    dtype = recipe.model.dtype
    weights, token = shape.weight_bytes(dtype, device), shape.cache_bytes(dtype, device)
    rows = engine.max_batch_size
    if rows == "auto":
        rows = MOST_ROWS[device] if free is None else rows_that_fit(USABLE * free - weights, token, device)
    need = weights + rows * row * token
    told = f"{_size(need)} with cache for {counted(rows, 'row')} of {row:,} tokens"
    if drifts:
        both = 2 * (weights + 2 * SCORED_ROWS * shape.vocabulary * 4)  # logits, and log-probabilities in float32
        told += f", {_size(both)} while drift has two models side by side"
        need = max(need, both)
    return need, told


def _with_transformers(
    engine: TransformersSettings, recipe: Recipe, shape: Shape, row: int, drifts: bool, free: int | None
) -> str:
    device = guess_device(recipe.model.device)
    replicas = 1 if engine.replicas == "auto" else engine.replicas
    shares = replicas > 1 and device != "cuda"  # those on GPUs have one each
    need, told = _one_engine(engine, recipe, shape, row, drifts, device, None if shares else free)
    way_out = "take a smaller model or lower max_batch_size"
    if shares:
        need *= replicas
        return f"each of {replicas} replicas takes {told}; {_size(need)} in all{_too_little(need, free, way_out)}"
    each = " on each GPU" if device == "cuda" and engine.replicas != 1 and gpu_count() > 1 else ""
    return f"{told}{each}{_too_little(need, free, way_out)}"


def _with_ray(engine: RaySettings, recipe: Recipe, shape: Shape, row: int, drifts: bool, free: int | None) -> str:
    unseen = "and what nodes have cannot be seen from here"
    if isinstance(engine.inner, VLLMSettings):
        gpus, weights, token = _vllm_bytes(engine.inner, recipe, shape)
        told = f"{_size(weights)} of weights on " + (f"each of its {gpus} GPUs" if gpus > 1 else "its GPU")
        told += f", and {_size(row * token)} of cache for each row of {row:,} tokens"
        return f"each of {counted(engine.replicas, 'replica')} takes {told}, {unseen}"
    assert isinstance(engine.inner, TransformersSettings)
    device: DeviceName = "cuda" if engine.gpus(recipe.model, gpu_count() > 0) else "cpu"
    need, told = _one_engine(engine.inner, recipe, shape, row, drifts, device, None)
    told = f"each of {engine.replicas} replicas takes {told}" if engine.replicas > 1 else told
    if engine.address is None and device == "cpu":
        need *= engine.replicas
        return f"{told}; {_size(need)} in all{_too_little(need, free, 'lower replicas or max_batch_size')}"
    where = "a GPU" if device == "cuda" else "the processor"
    return f"{told}, on {where} of its node, {unseen}"


def _vllm_bytes(engine: VLLMSettings, recipe: Recipe, shape: Shape) -> tuple[int, float, float]:
    """GPUs, and bytes on each of them of the weights, and of one token's keys and values."""
    gpus = engine.tensor_parallel_size
    weights = shape.weight_bytes(recipe.model.dtype, "cuda") / gpus
    token = shape.cache_bytes(recipe.model.dtype, "cuda") / min(gpus, shape.kv_heads)  # fewer heads than GPUs: copied
    return gpus, weights, token


def _with_vllm(engine: VLLMSettings, recipe: Recipe, shape: Shape, row: int) -> str:
    """vLLM fills a share of each GPU, used or not: what its weights leave of it is cache."""
    gpus, weights, token = _vllm_bytes(engine, recipe, shape)
    size, share = gpu_size(), engine.gpu_memory_utilization
    told = f"{_size(weights)} of weights on " + (f"each of {gpus} GPUs" if gpus > 1 else "its GPU")
    if size is None:
        why = "the GPU's memory is not told" if gpu_count() else "no GPU is seen here"
        return (
            f"{told}, and {_size(row * token)} of cache for each row of {row:,} tokens; {why}, so how "
            f"many rows gpu_memory_utilization={share:g} leaves room for is not known"
        )
    room = share * size - weights
    rows = int(room / (row * token))
    told += f"; of {share:g} × {_size(size)} they leave {_size(room)}, less what computing takes: at most "
    told += f"{int(max(0, room) / token):,} tokens of cache, {rows:,} rows of {row:,}"
    told += f" (max_batch_size is {engine.max_batch_size})" if rows > engine.max_batch_size else ""
    if gpus > gpu_count():
        return f"{told}: too few GPUs, {gpu_count()} are seen here"
    if rows < 1:
        return f"{told}: too little, raise tensor_parallel_size or take a smaller model"
    way_out = "end what else is on it, or lower gpu_memory_utilization"
    return told + _too_little(share * size, free_memory("cuda"), way_out)


def _to_train(recipe: Recipe, shape: Shape, sample: Sample | None, processes: int, free: int | None) -> str:
    config, device = recipe.train, guess_device(recipe.model.device)
    longest = config.max_length if config.packing or sample is None else min(sample.longest_row, config.max_length)
    need = _training_bytes(recipe, shape, longest)
    told = f"{_size(need)} with gradients, optimizer and activations of rows of {longest:,} tokens"
    if longest < config.max_length:
        told += f", the sample's longest ({_size(_training_bytes(recipe, shape, config.max_length))} at max_length)"
    way_out = "see train.lora, per_device_train_batch_size, max_length and gradient_checkpointing"
    if processes == 1:
        return told + _too_little(need, free, way_out)
    told = f"each of {processes} processes takes {told}"
    if device == "cuda":
        few = f": too few GPUs, {gpu_count()} are seen here" if gpu_count() < processes else ""
        return told + (few or _too_little(need, free, way_out))
    return f"{told}; {_size(processes * need)} in all{_too_little(processes * need, free, way_out)}"


def _training_bytes(recipe: Recipe, shape: Shape, longest: int) -> int:
    """Weights, gradients, Adam's two moments in float32, and the activations of one batch, roughly."""
    config, device = recipe.train, guess_device(recipe.model.device)
    tokens = config.per_device_train_batch_size * longest
    kept = 2 if config.gradient_checkpointing else 34  # hidden states a layer
    activations = tokens * (shape.layers * shape.hidden * kept * 2 + 2 * 4 * shape.vocabulary)
    if config.lora is None:
        return 16 * shape.parameters + activations
    adapted = _adapter_numbers(config.lora, shape)
    return shape.parameters * bytes_of(recipe.model.dtype, device) + 16 * adapted + activations


def disk(recipe: Recipe, sample: Sample) -> Line:
    """Texts are kept as data, rewrite, choice (with both) and distilled row; then weights and checkpoints."""
    texts = sample.rows * (3 * sample.train_prompt + 3 * sample.original + 4 * sample.rewrite) * BYTES_A_TOKEN
    place = Path(recipe.output_dir).absolute()
    while not place.exists():
        place = place.parent
    weights = 0.0
    if recipe.methods and (shape := shape_of(resolve(recipe.model))):
        trained = shape.parameters if recipe.train.lora is None else _adapter_numbers(recipe.train.lora, shape)
        weights = trained * 4.0 * (len(recipe.methods) + 2 * 3)  # checkpoints: two for a moment, with Adam's moments
    need, free = texts + weights, shutil.disk_usage(place).free
    return Line(
        "disk", f"about {_size(need)} in {place}, which has {_size(free)} free{'' if need < free else ': too little'}"
    )


def _adapter_numbers(lora: LoraConfig, shape: Shape) -> int:
    """An upper bound: as if every matrix of a layer had an adapter."""
    return lora.r * shape.adaptable
