# Builds the checkout in which it lies:
# spack repo add packaging/spack/spack_repo/allnorm && spack install allnorm
import pathlib

from spack_repo.builtin.build_systems.cmake import CMakePackage
from spack_repo.builtin.build_systems.cuda import CudaPackage

from spack.package import *


class Allnorm(CMakePackage, CudaPackage):
    """Computes the statistics of normalization layers over exactly the numbers that are asked for
    (one batch, every rank of a job, the last iterations, the mini-batches of one batch) and
    normalizes with them, forward and backward."""

    git = pathlib.Path(__file__).resolve().parents[6].as_uri()

    license("Apache-2.0")

    version("main", branch="main")

    variant("mpi", default=True, description="Ranks as processes of MPI")
    variant("torch", default=False, description="Layers for libtorch, and allnorm train")
    variant("nccl", default=False, when="+cuda", description="Ranks with a GPU each, over NCCL")

    generator("ninja")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("boost+program_options")
    depends_on("eigen@3.3:", type="build")
    depends_on("highway")
    depends_on("nlohmann-json", type="build")
    depends_on("zlib-api")
    depends_on("mpi", when="+mpi")
    depends_on("py-torch@2.7:", when="+torch")  # found by the prefix that it gives CMake
    depends_on("cuda@12:", when="+cuda")
    depends_on("nccl", when="+nccl")

    conflicts("platform=darwin")
    conflicts("platform=windows")

    def cmake_args(self):
        args = [
            self.define("ALLNORM_BUILD_TESTS", False),
            self.define("ALLNORM_BUILD_BENCH", False),
            self.define("ALLNORM_CCACHE", False),
            self.define("ALLNORM_WITH_PROMETHEUS", False),
            self.define("ALLNORM_WITH_TORCH_STABLE", False),
        ]
        for part in ("mpi", "torch", "cuda", "nccl"):
            args.append(self.define(f"ALLNORM_WITH_{part.upper()}", f"+{part}" in self.spec))
        architectures = (
            self.spec.variants["cuda_arch"].value if "+cuda" in self.spec else ("none",)
        )
        if "none" not in architectures:
            args.append(self.define("CMAKE_CUDA_ARCHITECTURES", architectures))
        return args
