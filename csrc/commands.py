"""How each library is compiled and linked, as a build.ninja. Used by setup.py alone."""

import os
import shlex
import shutil
import sysconfig
from importlib import metadata, util
from pathlib import Path

env = os.environ.get
CXX = shlex.split(env("CXX") or "g++")
ARCHS = env("TORCH_CUDA_ARCH_LIST") or "8.0;8.6;8.9;9.0a;10.0;12.0+PTX"
HOMES = [home for home in (env("CUDA_HOME"), "/usr/local/cuda") if home]
CUDA_HOME = next((home for home in HOMES if shutil.which(f"{home}/bin/nvcc")), None)
TORCH = Path(util.find_spec("torch").origin).parent if util.find_spec("torch") else None
SOURCES = {"_host": ["host/*.cpp"], "_C_cpu": ["cpu/*.cpp"], "_C_cuda": ["cuda/*.cu", "cuda/*.cpp"]}


def compilers(name: str) -> dict[str, list[str]]:
    """The command for each suffix of source. No -std: defaults suit every torch from 2.10 on."""
    cpp = [*CXX, "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    if name == "_host":
        import pybind11

        cpp += [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]
        cpp += [f'-DSHIFTMLP_TORCH="{metadata.version("torch") if TORCH else ""}"']
    else:
        # Newer functions of the stable ABI stay hidden: one build serves torch 2.10 and later.
        cpp += [f"-isystem{TORCH}/include", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    if name == "_C_cuda":
        cpp += [f"-isystem{CUDA_HOME}/include", "-DUSE_CUDA", f'-DSHIFTMLP_CUDA_ARCHS="{ARCHS}"']
    cu = [
        f"{CUDA_HOME}/bin/nvcc",
        "-ccbin",
        CXX[0],
        "-O3",
        "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
    ]
    return {".cpp": cpp + shlex.split(env("CXXFLAGS") or ""), ".cu": cu}


def gencode(source: str) -> list[str]:
    """An image for every architecture, and PTX, which later devices compile, for "+PTX". What one
    architecture alone can run is named after it, and is in every build."""
    if source.endswith("_sm90.cu"):
        return ["-gencode=arch=compute_90a,code=sm_90a"]
    flags = []
    for arch in ARCHS.replace(" ", ";").split(";"):
        number = arch.removesuffix("+PTX").replace(".", "")
        ptx = f",compute_{number}" if arch.endswith("+PTX") else ""
        flags.append(f"-gencode=arch=compute_{number},code=[sm_{number}{ptx}]")
    return flags


def libraries(name: str) -> list[str]:
    if name == "_host":
        return []
    # libtorch.so is kept for the libraries that it needs in turn: weak symbols are found there.
    flags = ["-Wl,--no-as-needed", f"-L{TORCH}/lib", "-ltorch", "-ltorch_cpu"]
    if name == "_C_cuda":
        flags += [f"-L{CUDA_HOME}/lib64", "-lcudart_static", "-lpthread", "-ldl", "-lrt"]
    return flags


def build_ninja(targets: dict[str, str], folder: Path) -> str:
    """Makes every library, given as {name: target}, with its objects below ``folder``."""
    lines = [f"builddir = {folder}", "rule run", "  command = $command", "  depfile = $made_from"]
    for name, target in targets.items():
        objects = []
        for pattern in SOURCES[name]:
            for source in sorted(Path("csrc").glob(pattern)):
                out = f"{folder}/{name}/{source.name}.o"
                command = [*compilers(name)[source.suffix], "-MMD", "-MF", f"{out}.d", "-c"]
                command += gencode(source.name) if source.suffix == ".cu" else []
                lines += _edge(out, [source], [*command, str(source), "-o", out], f"{out}.d")
                objects.append(out)
        link = [*CXX, "-shared", *shlex.split(env("LDFLAGS") or ""), *objects, *libraries(name)]
        lines += _edge(target, objects, [*link, "-o", target])
    return "\n".join(lines) + "\n"


def _edge(output: str, inputs: list, command: list[str], depfile: str = "") -> list[str]:
    output, *inputs = (
        str(path).replace("$", "$$").replace(" ", "$ ") for path in (output, *inputs)
    )
    edge = [f"build {output}: run {' '.join(inputs)}"]
    edge.append(f"  command = {shlex.join(command).replace('$', '$$')}")
    return edge + [f"  made_from = {depfile.replace('$', '$$')}"] * bool(depfile)
