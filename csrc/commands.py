"""How each library is compiled and linked, as a build.ninja. Used by setup.py, and by the tests,
which compile the emulator with bugs planted in the kernels."""

import functools
import hashlib
import os
import re
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
# Asked for here: sysconfig must not be asked first by several threads at once.
VERSIONS = [sysconfig.get_config_var("SOABI"), metadata.version("torch") if TORCH else ""]
CXXFLAGS = shlex.split(env("CXXFLAGS") or "")
LDFLAGS = shlex.split(env("LDFLAGS") or "")
CSRC = Path(__file__).parent
SOURCES = {
    "_host": ["host/*.cpp"],
    "_C_cpu": ["cpu/*.cpp"],
    "_C_cuda": ["cuda/*.cu", "cuda/*.cpp"],
    "_emulator": ["emulator/*.cpp", "emulator/*.cu", "cuda/*.cu"],
}


def compilers(name: str) -> dict[str, list[str]]:
    """The command for each suffix of source. No -std: defaults suit every torch from 2.10 on."""
    if name == "_emulator":
        cpp = [*CXX, "-std=c++20", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
        cpp += ["-Wno-unknown-pragmas", "-Icsrc/emulator/nvidia", *pybind()]
        # What all kernels call runs more than it is compiled; a kernel, the other way round.
        return {".cpp": [*cpp, "-O2", *CXXFLAGS], ".cu": [*cpp, "-O1", *CXXFLAGS, "-x", "c++"]}
    cpp = [*CXX, "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    if name == "_host":
        cpp += [*pybind(), f'-DSHIFTMLP_TORCH="{VERSIONS[1]}"']
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
    return {".cpp": cpp + CXXFLAGS, ".cu": cu}


def pybind() -> list[str]:
    import pybind11

    return [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]


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
    if name in ("_host", "_emulator"):
        return []
    # libtorch.so is kept for the libraries that it needs in turn: weak symbols are found there.
    flags = ["-Wl,--no-as-needed", f"-L{TORCH}/lib", "-ltorch", "-ltorch_cpu"]
    if name == "_C_cuda":
        flags += [f"-L{CUDA_HOME}/lib64", "-lcudart_static", "-lpthread", "-ldl", "-lrt"]
    return flags


def compile_command(name: str, source: Path) -> list[str]:
    """All but the source's and the object's names."""
    command = [*compilers(name)[source.suffix], "-c"]
    is_for_gpus = name == "_C_cuda" and source.suffix == ".cu"
    return command + (gencode(source.name) if is_for_gpus else [])


@functools.cache
def files_of(source: Path) -> list[Path]:
    """With all of our headers that it includes."""
    files = [source]
    for file in files:
        for name in re.findall(r'#include ["<](.*)[">]', file.read_text()):
            for folder in (file.parent, CSRC / "emulator/nvidia"):
                header = (folder / name).resolve()
                if header.is_file() and header not in files:
                    files.append(header)
    return files


def kept_as(command: list[str], source: Path) -> str:
    """A name for an object that tells of all that it is made of. So no object is made twice: not by
    a build in another folder, nor for another library that the emulator is linked into."""
    words = [word for word in command if not word.startswith("-isystem")]  # but for versions:
    words += VERSIONS
    made_of = "\0".join([*words, source.name, *(file.read_text() for file in files_of(source))])
    return hashlib.sha256(made_of.encode()).hexdigest()[:20] + ".o"


# An object is whole if it is there, and what its compiler said is kept beside it.
WHOLE = '"$@" -o "$0.part" 2> "$0.txt" && mv "$0.part" "$0"; status=$?; cat "$0.txt" >&2; '
WHOLE += "exit $status"


def build_ninja(targets: dict[str, str], folder: Path) -> str:
    """Makes every library, given as {name: target}, and those of its objects that are not there."""
    lines = [f"builddir = {folder}", "rule run", "  command = $command"]
    for name, target in targets.items():
        objects = []
        for source in (s for pattern in SOURCES[name] for s in sorted(Path("csrc").glob(pattern))):
            command = compile_command(name, source)
            objects.append(f"build/objects/{kept_as(command, source)}")
            if not Path(objects[-1]).exists():
                command = ["sh", "-c", WHOLE, objects[-1], *command, str(source)]
                lines += _edge(objects[-1], [source], command)
        link = [*CXX, "-shared", *LDFLAGS, *objects, *libraries(name)]
        lines += _edge(target, objects, [*link, "-o", target])
    return "\n".join(lines) + "\n"


def _edge(output: str, inputs: list, command: list[str]) -> list[str]:
    output, *inputs = (
        str(path).replace("$", "$$").replace(" ", "$ ") for path in (output, *inputs)
    )
    edge = [f"build {output}: run {' '.join(inputs)}"]
    return [*edge, f"  command = {shlex.join(command).replace('$', '$$')}"]
