"""A folder is a layer: who may include or import whom, proved over the whole tree."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# layer of csrc/ -> what it may include, besides itself
LAYERS = {
    "base": set(),
    "schedule": set(),
    "data": {"base"},
    "privacy": {"base"},
    "model": {"privacy", "base"},
    "transport": {"base"},
    "engine": {"schedule", "transport", "base"},
    "simt": {"base", "privacy"},
}
# header -> the only files that may include it
HEADERS = {
    r"cuda_runtime\.h": {"csrc/base/cuda.hpp"},
    r"cuda.*\.h": {"csrc/base/cuda.hpp", "*_cuda.cu", "*.cuh"},
    r"mpi(_abi)?\.h": {"csrc/transport/mpi_calls.hpp"},
    r"nccl\.h": set(),  # opened at run time, see transport/nccl_library.hpp
    r"(torch|ATen|c10)/.*": set(),
    r"(pybind11/.*|Python\.h)": {"bindings/*"},
}
# package -> the only modules that may import it
PACKAGES = {
    "torch": {
        *(
            f"dpcomm/{n}.py"
            for n in ("backend", "ddp", "distributed", "ghost", "hooks", "matrices")
        ),
        *(f"dpcomm/{n}.py" for n in ("loader", "nccl", "opacus", "parts", "private", "torch")),
        "dpcomm/torch_ops.py",
        "dpcomm/bench/gpu.py",
        "dpcomm/bench/peers.py",
        *(
            f"dpcomm/train/{n}.py"
            for n in ("canaries", "checkpoint", "metrics", "model", "schedule", "step", "trainer")
        ),
    },
    "mpi4py": {"dpcomm/launch.py", "dpcomm/bench/peers.py"},
    "pyspark": {f"dpcomm/data/{n}.py" for n in ("hadoop", "prepare", "session")},
    "py4j": {"dpcomm/data/hadoop.py", "dpcomm/data/session.py"},
    "matplotlib": {"dpcomm/bench/plot.py", "dpcomm/train/plot.py"},
    "dp_accounting": {"dpcomm/accounting.py"},
    "opacus": {"dpcomm/opacus.py"},
}


def included(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func).split(".")[-1]
            loads = function in {"import_module", "__import__"}
            names |= {str(node.args[0].value).split(".")[0]} if loads else set()
    return names


def violations(root: Path) -> list[str]:
    found = []
    for path in sorted([*root.glob("csrc/**/*.[chi]*"), *root.glob("bindings/*.[ch]pp")]):
        name = path.relative_to(root)
        layer = name.parts[1] if name.parts[0] == "csrc" else None
        if layer is not None and path.suffix in {".h", ".hpp", ".cpp", ".cu", ".cuh", ".inl"}:
            for header in included(path):
                other = header.split("/")[0]
                if other in LAYERS and other != layer and other not in LAYERS[layer]:
                    found.append(f"{name}: layer {layer} includes {header}")
        for pattern, allowed in HEADERS.items():
            if any(name.match(place) for place in allowed):
                continue
            found += [f"{name}: {h}" for h in included(path) if re.fullmatch(pattern, h)]
    for path in sorted(root.glob("dpcomm/**/*.py")):
        name = path.relative_to(root).as_posix()
        for package in imported(path) & PACKAGES.keys():
            if name not in PACKAGES[package]:
                found.append(f"{name}: imports {package}")
    return found


def test_every_layer_keeps_to_its_own():
    assert violations(ROOT) == []


def test_a_planted_violation_is_seen(tmp_path):
    for folder in ("csrc", "bindings", "dpcomm"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so"))
    planted = {
        "csrc/schedule/ring.cpp": '#include "base/error.hpp"\n',
        "csrc/base/log.hpp": '#include "engine/execute.hpp"\n',
        "csrc/base/dtype.hpp": "#include <torch/torch.h>\n",
        "csrc/base/env.cpp": "#include <pybind11/pybind11.h>\n",
        "csrc/simt/planted.h": '#include "engine/execute.hpp"\n',
        "dpcomm/__init__.py": "def later():\n    import torch\n",
        "dpcomm/comm.py": "import importlib\nimportlib.import_module('mpi4py.MPI')\n",
    }
    for name, line in planted.items():
        path = tmp_path / name
        path.write_text((path.read_text() if path.exists() else "") + "\n" + line)
    found = violations(tmp_path)
    assert [line.split(":")[0] for line in found] == sorted(
        planted, key=lambda name: (name.startswith("dpcomm"), name)
    )


def test_importing_dpcomm_starts_neither_mpi_nor_torch_nor_a_jvm():
    code = "import dpcomm, sys; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "dpcomm" in loaded
    assert not PACKAGES.keys() & set(loaded)
