"""Writes the requests and configs beside this file from models/demo: which adapter each request of a load names, and with which prompt."""

import base64
import hashlib
import json
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
MODEL = HERE.parents[1] / "models" / "demo"
SEED, REQUESTS, ZIPF, MAX_TOKENS = 1, 240, 1.5, 32
# The first of the demo's, as many as it had when the README's figures were measured.
ADAPTERS = 12
CHURNED = "severity"
HOST = "127.0.0.1:50051"
SERVICE = "polydelta.v1.GenerationService"


def request(entry: dict, prompt: str) -> dict:
    return {"adapter": entry["name"], "prompt": prompt, "stopping": {"max_tokens": MAX_TOKENS}}


def loads() -> dict[str, list[dict]]:
    rng = Random(SEED)
    base, *adapters = json.loads((MODEL / "demo.json").read_text())[:1 + ADAPTERS]
    prompts = {
        entry["name"]: [json.loads(line)["prompt"] for line in (MODEL / "eval" / f"{entry['name']}.jsonl").open()]
        for entry in adapters
    }

    def of(entry: dict) -> dict:
        return request(entry, rng.choice(prompts[entry["name"]]))

    everything = [prompt for several in prompts.values() for prompt in several]
    popularity = [1 / rank**ZIPF for rank in range(1, len(adapters) + 1)]
    return {
        "base": [request(base, rng.choice(everything)) for _ in range(REQUESTS)],
        "one": [of(adapters[0]) for _ in range(REQUESTS)],
        "uniform": [of(rng.choice(adapters)) for _ in range(REQUESTS)],
        "zipf": [of(entry) for entry in rng.choices(adapters, popularity, k=REQUESTS)],
        # In turn: as many requests in flight as there are adapters are all for different ones.
        "distinct": [of(adapters[index % len(adapters)]) for index in range(REQUESTS // len(adapters) * len(adapters))],
    }


def upload(name: str) -> list[dict]:
    """One upload: its header and a chunk a file. ghz draws a number for each, so they make and replace 16 names."""
    files = [MODEL / "adapters" / name / file for file in ("adapter_config.json", "adapter_model.safetensors")]
    contents = [file.read_bytes() for file in files]
    header = {
        "name": 'churn-{{ randomInt 0 16 }}',
        "files": [
            {"path": file.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for file, content in zip(files, contents)
        ],
    }
    chunks = [
        {"chunk": {"file_index": index, "offset": 0, "data": base64.b64encode(content).decode()}}
        for index, content in enumerate(contents)
    ]
    return [{"header": header}, *chunks]


def config(call: str, data: str, concurrency: int, total: int) -> dict:
    return {
        "insecure": True, "host": HOST, "call": call, "data-file": f"benches/ghz/data/{data}.json",
        "concurrency": concurrency, "total": total,
    }


def write(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def main() -> None:
    for name, requests in loads().items():
        concurrency = ADAPTERS if name == "distinct" else 16
        write(HERE / "data" / f"{name}.json", requests)
        write(HERE / f"{name}-unary.json", config(f"{SERVICE}/Generate", name, concurrency, 2000))
        write(HERE / f"{name}-stream.json", config(f"{SERVICE}/GenerateStream", name, concurrency, 2000))
    write(HERE / "data" / "upload.json", upload(CHURNED))
    write(HERE / "upload-churn.json", config("polydelta.v1.AdapterService/UploadAdapter", "upload", 4, 200))


if __name__ == "__main__":
    main()
