"""Images per CPU second of encoders on their backends, one thread, against torch eager in float32, channels first.

Rounds are interleaved, so that all cases meet the same neighbours; ratios are medians over rounds of one case's
CPU time to the reference's in the same round. Networks without installed weights get random ones, which says
nothing about accuracy but costs the same.

python benchmarks/encoder_speed.py SLIDE [ENCODER ...] [--backends torch,openvino:bf16] [--rounds 5] [--batch 16]
python benchmarks/encoder_speed.py SLIDE [ENCODER ...] --calibration 24   # int8 calibrated on other tiles of it
SLIDE: CMU-1-Small-Region.svs, or any slide with enough tissue tiles; ENCODER: efficientnet-lite0, resnet50, vit-s, ...
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mhim.encoders import Encoder, encoders
from mhim.encoders.backends.probe import centred_cosine
from mhim.encoders.cards import LARGE, SMALL
from mhim.encoders.resnet import ResNet50Stage3
from mhim.encoders.vit import VisionTransformer, ViTSpec
from mhim.errors import MhimError
from mhim.slides import open_slide
from mhim.tiles import TileSpec, plan_tiles
from mhim.tissue import TissueConfig, segment_tissue

CASES = "torch:fp32,torch:bf16,openvino:fp32,openvino:bf16,openvino:int8,onnxruntime:fp32"
RANDOM: dict[str, ViTSpec] = {"vit-s": SMALL, "vit-l": LARGE}


def tiles_of(path: Path, side_px: int, count: int = 16) -> np.ndarray:
    """The first tissue tiles (count, side, side, 3) uint8 of a slide at 0.5 um per pixel."""
    with open_slide(path) as slide:
        tissue = segment_tissue(slide, TissueConfig())
        spec = TileSpec.model_validate({"size_px": side_px, "mpp": 0.5})
        xy_px0 = plan_tiles(slide.size_px0, slide.mpp0, tissue, spec, slide.slide_id)[:count]
        return np.stack([slide.read((int(x), int(y)), (side_px, side_px), 0.5) for x, y in xy_px0])


def random_file(name: str, folder: Path) -> Path | None:
    """A file of random weights for a network that has none installed."""
    torch.manual_seed(0)
    if name == "resnet50":
        network = ResNet50Stage3()
        with torch.no_grad():  # statistics of BatchNorm over noise, so that activations keep their size
            for _ in range(20):
                network(torch.randn(4, 3, 128, 128))
    elif name in RANDOM:
        network = VisionTransformer(RANDOM[name])
        for value in (network.prefix, network.positions):
            torch.nn.init.trunc_normal_(value, std=0.02)
    else:
        return None
    tensors = dict(network.state_dict())
    if name in RANDOM:
        renamed = {
            "prefix": "cls_token",
            "patch.weight": "patch_embed.proj.weight",
            "patch.bias": "patch_embed.proj.bias",
        }
        positions = torch.cat([torch.zeros(1, 1, RANDOM[name].width), tensors.pop("positions")], dim=1)
        tensors = {renamed.get(key, key): value for key, value in tensors.items()} | {"pos_embed": positions}
    save_file(tensors, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def build(name: str, backend: str, precision: str, weights: Path | None, calibration: Path | None = None) -> Encoder:
    """The encoder on a backend; int8 calibrated on the tiles of a file, if there is one."""
    options = {"name": "vit" if name in RANDOM else name, "backend": backend, "precision": precision}
    if precision == "int8" and calibration is not None:
        options["calibration"] = str(calibration)
    return encoders.build(encoders.parse(options | ({"weights": weights} if weights else {})))


def _named(case: str) -> tuple[str, str]:
    backend, _, precision = case.partition(":")
    return backend, precision or "auto"


def eager(encoder: Encoder) -> Callable[[np.ndarray], np.ndarray]:
    """The reference: the same network as torch users run it, channels first, pixels made floats in advance."""
    network = encoder.graph.build().network.eval()  # pyright: ignore[reportAttributeAccessIssue]
    graph = encoder.graph.module  # pyright: ignore[reportAttributeAccessIssue]

    @torch.inference_mode()
    def run(tiles: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(tiles).permute(0, 3, 1, 2).contiguous().float()
        return network((x - graph.mean) / graph.deviation).numpy()

    return run


def measure(
    name: str, path: Path, cases: list[str], rounds: int, batch: int, folder: Path, calibrating: int = 0
) -> None:
    """Print one encoder's table; ``calibrating`` tiles after the measured ones calibrate int8."""
    weights = random_file(name, folder)
    plain = build(name, "torch", "fp32", weights)
    side = getattr(plain, "input_px", None) or plain.tile_px
    tiles, calibration = tiles_of(path, side, batch + calibrating), None
    if calibrating:
        calibration = folder / f"{name}_calibration.npy"
        np.save(calibration, tiles[batch:])
        tiles = np.ascontiguousarray(tiles[:batch])
    runs: dict[str, Callable[[np.ndarray], np.ndarray]] = {"eager fp32": eager(plain)}
    for case in cases:
        try:
            runs[case] = build(name, *_named(case), weights, calibration).encode
            runs[case](tiles)
        except MhimError as error:
            runs.pop(case, None)
            print(f"{name:16s} {case:18s} {error}", flush=True)
    exact = runs["eager fp32"](tiles)
    spent: dict[str, list[float]] = {case: [] for case in runs}
    for _ in range(rounds):
        for case, run in runs.items():
            start = time.process_time()
            run(tiles)
            spent[case].append(time.process_time() - start)
    for case, run in runs.items():
        ratios = [slow / fast for slow, fast in zip(spent["eager fp32"], spent[case], strict=True)]
        cosine = centred_cosine(exact, run(tiles))
        print(
            f"{name:16s} {side:4d} px  {case:18s} {len(tiles) / statistics.median(spent[case]):7.1f} images/CPU s  "
            f"{statistics.median(ratios):5.1f}x [{min(ratios):.1f}..{max(ratios):.1f}]  "
            f"centred cosine {cosine.min():.4f} min {cosine.mean():.4f} mean",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("encoders", nargs="*", default=["efficientnet-lite0", "resnet50", "vit-s"])
    parser.add_argument("--backends", default=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--calibration", type=int, default=0, help="further tiles of the slide to calibrate int8 on")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.encoders:
            measure(
                name, asked.slide, asked.backends.split(","), asked.rounds, asked.batch, Path(folder), asked.calibration
            )


if __name__ == "__main__":
    main()
