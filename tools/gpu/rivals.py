"""What PyTorch takes for the work of the bench `gpu` on this device: low-rank pairs of many adapters as it can be asked for
them, and products of the base. One JSON document; `python rivals.py OUT` on a machine with PyTorch and a GPU.

Every way is recorded as a CUDA graph over many sites whose matrices are together more than a cache keeps, and its answer is
compared with plain products in float64 before it is timed.
"""

import json
import statistics
import sys

import torch

ROUNDS = 24
DEVICE = "cuda"


def seconds(pass_):
    """Median of a replay of what `pass_` launches."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            pass_()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pass_()
    times = []
    for _ in range(ROUNDS + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times[3:])


def uniform(*shape, bound=1.0):
    return (torch.rand(*shape, device=DEVICE) * 2 - 1).mul_(bound).to(torch.bfloat16)


def gather_and_bmm(x, a, b, slots):
    return torch.bmm(b[slots], torch.bmm(a[slots], x.unsqueeze(2))).squeeze(2)


def loop(x, a, b, slots, parts):
    outs = [(x[first:end] @ a[slot].T) @ b[slot].T for slot, (first, end) in parts]
    return torch.cat(outs)


def grouped(x, a, b, ends):
    v = torch._grouped_mm(x, a.transpose(1, 2), offs=ends)
    return torch._grouped_mm(v, b.transpose(1, 2), offs=ends)


def low_rank(rows, adapters, inputs, outputs, rank, sites):
    each = rows // adapters
    slots = torch.arange(adapters, device=DEVICE).repeat_interleave(each)
    parts = [(slot, (slot * each, (slot + 1) * each)) for slot in range(adapters)]
    ends = torch.arange(each, rows + 1, each, device=DEVICE, dtype=torch.int32)
    x = uniform(rows, inputs)
    pairs = [(uniform(adapters, rank, inputs, bound=0.035), uniform(adapters, outputs, rank, bound=0.035)) for _ in range(sites)]
    ways = {
        "gather_and_bmm": lambda a, b: gather_and_bmm(x, a, b, slots),
        "loop": lambda a, b: loop(x, a, b, slots, parts),
        "grouped_gemm": lambda a, b: grouped(x, a, b, ends),
    }
    exact = torch.cat([x[f:e].double() @ pairs[0][0][s].double().T @ pairs[0][1][s].double().T for s, (f, e) in parts])
    found = {"op": "low_rank", "rows": rows, "adapters": adapters, "inputs": inputs, "outputs": outputs, "rank": rank, "seconds": {}}
    for name, way in ways.items():
        try:
            error = ((way(*pairs[0]).double() - exact).norm() / exact.norm()).item()
            assert error < 2e-2, f"{name} is off by {error}"
            found["seconds"][name] = seconds(lambda way=way: [way(a, b) for a, b in pairs]) / sites
        except (RuntimeError, AttributeError) as refused:
            found["seconds"][name] = None
            found.setdefault("refused", {})[name] = str(refused).splitlines()[0]
    return found


def gemm(rows, inputs, outputs, weights):
    x = uniform(rows, inputs)
    all_ = [uniform(outputs, inputs, bound=0.035) for _ in range(weights)]
    taken = seconds(lambda: [torch.nn.functional.linear(x, w) for w in all_]) / weights
    return {"op": "gemm", "rows": rows, "inputs": inputs, "outputs": outputs, "seconds": taken,
            "bytes_per_second": 2 * inputs * outputs / taken, "operations_per_second": 2 * rows * inputs * outputs / taken}


def copies():
    source = torch.zeros(2 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source))


def main():
    figures = [low_rank(64, 64, 4096, 4096, 16, 16), low_rank(64, 8, 4096, 4096, 16, 32), low_rank(8, 8, 4096, 4096, 16, 64),
               low_rank(8, 1, 64, 2304, 64, 96)]
    shapes = [(4096, 4096, 16), (4096, 28672, 3), (14336, 4096, 6)]
    figures += [gemm(rows, *shape) for rows in [1, 8, 16, 32, 64, 128, 4096] for shape in shapes]
    document = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
                "copy_bytes_per_second": copies(), "rounds": ROUNDS, "figures": figures}
    with open(sys.argv[1], "w") as out:
        json.dump(document, out, indent=2)
    for figure in figures:
        print(json.dumps(figure))


if __name__ == "__main__":
    main()
