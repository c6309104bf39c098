"""The tools that turn the manifest into kernels: what they accept, and what they refuse and why."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from kernel_build import assembler, manifest, ptx, toolkit
from kernel_build import compile as kernel_compile
from kernel_build.errors import BuildError

ENTRY = {
    "name": "scale_m64",
    "family": "scale",
    "header": "scale/kernel.cuh",
    "body": "scale::body",
    "config_type": "scale::Config",
    "config": {"block_m": 64, "checked": True},
    "params": "scale::Params",
}

HEADER = """\
namespace scale {{
struct Config {{
  int block_m;
  bool checked;
  constexpr unsigned num_threads() const {{ return block_m; }}
}};
struct Params {{
  float* x;
  float factor;
}};
template <Config kConfig>
constexpr unsigned body_shared_bytes() {{
  return kConfig.block_m * 4;
}}
template <Config kConfig>
__device__ __forceinline__ void body(const Params& params) {{
  {statements}
}}
}}  // namespace scale
"""

CLEAN_LOG = """\
ptxas info    : 4 bytes gmem
ptxas info    : Compiling entry function 'scale_m64' for 'sm_90a'
ptxas info    : Function properties for scale_m64
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers, 16 bytes smem, 608 bytes cmem[0]
ptxas info    : Compile time = 4.748 ms
"""


def write_manifest(folder: Path, *entries: dict[str, object]) -> Path:
    path = folder / "csrc" / "manifest.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"kernels": entries}))
    return path


def make_project(folder: Path, statements: str) -> tuple[manifest.Kernel, kernel_compile.Folders]:
    """Lay out a repository with one kernel of these statements, and generate its source."""
    (kernel,) = manifest.load(write_manifest(folder, ENTRY))
    header = folder / "csrc" / kernel.header
    header.parent.mkdir()
    header.write_text(HEADER.format(statements=statements))
    folders = kernel_compile.Folders(folder, folder / "build" / "generated", folder / "out")
    kernel_compile.generate([kernel], folders)
    return kernel, folders


def compile_project(kernel: manifest.Kernel, folders: kernel_compile.Folders) -> Path:
    depfile = folders.generated / "depfile"
    kernel_compile.compile_kernel(kernel, folders, depfile)
    return depfile


def test_the_source_is_an_entry_point_around_the_body(tmp_path: Path) -> None:
    (kernel,) = manifest.load(write_manifest(tmp_path, ENTRY))
    source = kernel.source()
    assert "scale::Config kConfig{.block_m = 64, .checked = true};" in source
    assert "scale_m64_shared_bytes = scale::body_shared_bytes<kConfig>();" in source
    assert "scale_m64(const __grid_constant__ scale::Params params)" in source


def test_ctas_per_sm_bound_the_registers(tmp_path: Path) -> None:
    entries = [ENTRY, {**ENTRY, "name": "scale_2", "config": {"ctas_per_sm": 2}}]
    bounds = [kernel.source() for kernel in manifest.load(write_manifest(tmp_path, *entries))]
    assert "__launch_bounds__(kConfig.num_threads(), 1)" in bounds[0]
    assert "__launch_bounds__(kConfig.num_threads(), kConfig.ctas_per_sm)" in bounds[1]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        pytest.param([ENTRY, ENTRY], "listed 2 times", id="twice"),
        pytest.param([{**ENTRY, "tile": 1}], "must have the fields", id="unknown-field"),
        pytest.param([{**ENTRY, "name": "a b"}], "must be an identifier", id="name"),
        pytest.param([{**ENTRY, "config": {"block_m": "64"}}], "to integers", id="config"),
        pytest.param([{**ENTRY, "params": 7}], "params must be a text, got 7", id="text"),
    ],
)
def test_a_wrong_manifest_is_refused(
    tmp_path: Path, entries: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        manifest.load(write_manifest(tmp_path, *entries))


def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(BuildError, match="not a manifest"):
        manifest.load(tmp_path / "manifest.json")


def test_generating_again_leaves_files_and_removes_kernels_no_longer_listed(tmp_path: Path) -> None:
    kernel, folders = make_project(tmp_path, "")
    source = folders.generated / f"{kernel.name}.cu"
    stale = folders.generated / "removed.cu"
    stale.write_text("")
    os.utime(source, ns=(1, 1))
    kernel_compile.generate([kernel], folders)
    assert source.stat().st_mtime_ns == 1  # so ninja does not compile it again
    assert not stale.exists()


def test_a_clean_kernel_becomes_ptx_cubin_and_metadata(tmp_path: Path) -> None:
    kernel, folders = make_project(tmp_path, "params.x[threadIdx.x] = fmaf(2, params.factor, 1);")
    depfile = compile_project(kernel, folders)
    metadata = json.loads((folders.output / "scale_m64.json").read_text())
    assert metadata["threads"] == 64
    assert metadata["dynamic_shared_bytes"] == 256
    assert metadata["param_bytes"] == 16
    assert 0 < metadata["registers"] <= 255
    text = (folders.output / "scale_m64.ptx").read_text()
    assert {"csrc/scale/kernel.cuh", "generated/scale_m64.cu"} <= set(ptx.file_paths(text))
    assert (folders.output / "scale_m64.cubin").read_bytes().startswith(b"\x7fELF")
    assert str(folders.repository / "csrc" / kernel.header) in depfile.read_text()


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        pytest.param(
            'asm volatile("{.reg .f32 y;\\n mul.f32 y, %0, %0;\\n st.f32 [%1], y;}" :: '
            '"f"(params.factor), "l"(params.x));',
            r"may fuse.*mul\.f32",
            id="unrounded",
        ),
        pytest.param(
            "float y[1024]; for (int i = 0; i < 1024; ++i) y[i] = params.x[i]; "
            "params.x[0] = y[int(params.factor) & 1023];",
            "4096 bytes stack frame",
            id="local-memory",
        ),
        pytest.param("int unused;", "never referenced", id="warning"),
        pytest.param("params.x = missing;", 'identifier "missing" is undefined', id="error"),
    ],
)
def test_a_kernel_that_the_library_would_not_ship_is_refused(
    tmp_path: Path, statements: str, message: str
) -> None:
    kernel, folders = make_project(tmp_path, statements)
    with pytest.raises(BuildError, match=re.compile(message, re.DOTALL)):
        compile_project(kernel, folders)


def test_the_registers_are_read_from_a_clean_log() -> None:
    assert assembler.registers(CLEAN_LOG) == 168


@pytest.mark.parametrize(
    "advisory",
    [
        "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to "
        "determine register count at entry.",
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
        "serialized due to insufficient register resources for the wgmma pipeline in the function "
        "'scale_m64'",
        "ptxas info    : (C7519) warpgroup.arrive is injected in around line 60 by compiler to "
        "allow use of registers in GMMA in function 'scale_m64'",
        "    8 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads",
        "ptxas info    : Used 8 registers, used 0 barriers, 32 bytes cumulative stack size",
        "ptxas warning : something new",
    ],
)
def test_anything_else_in_the_log_is_refused(advisory: str) -> None:
    with pytest.raises(BuildError, match=re.escape(advisory)):
        assembler.registers(CLEAN_LOG + advisory + "\n")


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("\tadd.f32 \t%f1, %f2, %f3;", True),
        ("\t@%p1 mul.ftz.f32 \t%f1, %f2, %f3;", True),
        ("\tsub.f64 \t%fd1, %fd2, %fd3;", True),
        ("\tadd.f16x2 \t%r1, %r2, %r3;", True),
        ("\tadd.rn.f32 \t%f1, %f2, %f3;", False),
        ("\tmul.rz.ftz.f32 \t%f1, %f2, %f3;", False),
        ("\tfma.rn.f32 \t%f1, %f2, %f3, %f4;", False),
        ("\tadd.s32 \t%r1, %r2, %r3;", False),
        ("\tmul.wide.u32 \t%rd1, %r1, 4;", False),
        ("\t// add.f32 in a comment", False),
    ],
)
def test_operations_that_ptxas_may_fuse(line: str, refused: bool) -> None:
    assert bool(ptx.unrounded(f".version 9.0\n{line}\n")) == refused


def test_source_paths_become_relative() -> None:
    text = '\t.file\t1 "/repo/csrc/a.cuh"\n\t.file 2 "/cuda/include/b.h"\n\t.file 3 "/usr/c.h"\n'
    changed = ptx.relative_paths(text, {Path("/repo"): "", Path("/cuda"): "cuda"})
    assert ptx.file_paths(changed) == ["csrc/a.cuh", "cuda/include/b.h", "system/c.h"]


def test_an_older_ptxas_gets_a_version_that_it_reads() -> None:
    text = "//\n.version 9.0\n.target sm_90a\n"
    assert ptx.stamped(text, "12.9.86") == "//\n.version 8.7\n.target sm_90a\n"
    assert ptx.stamped(text, "13.0.88") == text


def make_tool(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_nvcc_is_looked_for_in_the_documented_order(tmp_path: Path) -> None:
    named = make_tool(tmp_path / "named" / "nvcc")
    home = make_tool(tmp_path / "home" / "bin" / "nvcc")
    on_path = make_tool(tmp_path / "path" / "nvcc")
    wheel = make_tool(tmp_path / "wheel" / "nvidia" / "cu13" / "bin" / "nvcc")
    packages = [str(tmp_path / "none"), str(tmp_path / "wheel")]
    environment: dict[str, str] = {}
    assert toolkit.find_nvcc(environment, packages) == wheel
    environment["PATH"] = str(on_path.parent)
    assert toolkit.find_nvcc(environment, packages) == on_path
    environment["CUDA_PATH"] = str(home.parent.parent)
    assert toolkit.find_nvcc(environment, packages) == home
    environment["CUDACXX"] = str(named)
    assert toolkit.find_nvcc(environment, packages) == named


def test_a_variable_that_names_no_nvcc_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="CUDA_HOME is set, but"):
        toolkit.find_nvcc({"CUDA_HOME": str(tmp_path)})


def test_no_nvcc_at_all_is_an_error_that_names_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"CUDACXX.*PATH.*nvidia-cuda-nvcc.*PYKERNELS_KERNELS_DIR"):
        toolkit.find_nvcc({"PATH": str(tmp_path)}, [])


def test_a_failing_tool_shows_its_command_and_output() -> None:
    with pytest.raises(BuildError, match=r"exit status 3 of: sh -c .*\nlost"):
        toolkit.run(["sh", "-c", "echo lost; exit 3"])


def test_prebuilt_kernels_are_copied(tmp_path: Path) -> None:
    kernel, folders = make_project(tmp_path, "")
    prebuilt = tmp_path / "prebuilt"
    prebuilt.mkdir()
    with pytest.raises(BuildError, match=r"has no scale_m64\.ptx"):
        kernel_compile.copy_prebuilt([kernel], prebuilt, folders)
    for suffix in kernel_compile.SUFFIXES:
        (prebuilt / f"scale_m64{suffix}").write_text('{"config": {"block_m": 128}}')
    with pytest.raises(BuildError, match="built for the config"):
        kernel_compile.copy_prebuilt([kernel], prebuilt, folders)
    (prebuilt / "scale_m64.json").write_text(json.dumps({"config": kernel.config}))
    kernel_compile.copy_prebuilt([kernel], prebuilt, folders)
    copied = {path.name for path in folders.output.iterdir()}
    assert copied == {"scale_m64.ptx", "scale_m64.cubin", "scale_m64.json"}
