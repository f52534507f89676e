# The checkout in which this port lies: vcpkg install allnorm --overlay-ports=packaging/vcpkg
get_filename_component(SOURCE_PATH "${CURRENT_PORT_DIR}/../../.." ABSOLUTE)

vcpkg_check_features(OUT_FEATURE_OPTIONS options FEATURES
  mpi ALLNORM_WITH_MPI
  program ALLNORM_BUILD_PROGRAM)
vcpkg_cmake_configure(SOURCE_PATH "${SOURCE_PATH}" OPTIONS ${options}
  -D ALLNORM_BUILD_TESTS=OFF -D ALLNORM_BUILD_BENCH=OFF -D ALLNORM_CCACHE=OFF -D ALLNORM_WITH_TORCH=OFF
  -D ALLNORM_WITH_TORCH_STABLE=OFF -D ALLNORM_WITH_CUDA=OFF -D ALLNORM_WITH_NCCL=OFF -D ALLNORM_WITH_PROMETHEUS=OFF)
vcpkg_cmake_install()

set(VCPKG_POLICY_DLLS_IN_STATIC_LIBRARY enabled)  # the C interface is a shared library everywhere
vcpkg_cmake_config_fixup(CONFIG_PATH lib/cmake/allnorm)
vcpkg_fixup_pkgconfig()
if("program" IN_LIST FEATURES)
  vcpkg_copy_tools(TOOL_NAMES allnorm AUTO_CLEAN)
endif()
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug/include" "${CURRENT_PACKAGES_DIR}/debug/share")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
