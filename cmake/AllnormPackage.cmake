# Install and export. Components of the installation: development (libraries, headers, package files) and program.
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/allnorm")
set(package_targets Targets)

install(TARGETS allnorm allnorm_shared EXPORT allnormTargets COMPONENT development)
install(DIRECTORY include/allnorm DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT development
  FILES_MATCHING PATTERN "*.hpp" PATTERN "*.h" PATTERN mpi.hpp EXCLUDE PATTERN nccl.hpp EXCLUDE)
foreach(part IN ITEMS MPI NCCL)
  string(TOLOWER ${part} name)
  set(header "${PROJECT_SOURCE_DIR}/include/allnorm/${name}.hpp")
  if(NOT ALLNORM_HAVE_${part})  # whoever includes it learns that when compiling, and not from the linker
    string(REGEX MATCH "\"${name}\", false, \"([^\"]*)\"" line "${ALLNORM_PARTS}")
    set(detail "${CMAKE_MATCH_1}")
    set(header "${PROJECT_BINARY_DIR}/absent/${name}.hpp")
    configure_file(cmake/absent.hpp.in "${header}" @ONLY)
  endif()
  install(FILES "${header}" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/allnorm" COMPONENT development)
endforeach()
if(ALLNORM_HAVE_MPI)
  # A set of its own: who links only allnorm::allnorm needs no MPI.
  install(TARGETS allnorm_mpi EXPORT allnormMpiTargets COMPONENT development)
  list(APPEND package_targets MpiTargets)
endif()
if(ALLNORM_HAVE_TORCH)
  install(TARGETS allnorm_torch EXPORT allnormTorchTargets COMPONENT development)
  list(APPEND package_targets TorchTargets)
  # As <allnorm/torch/NAME.hpp>, beside the others.
  foreach(name IN ITEMS norm_module conv_norm cosine_conv dynamic_shortcut streams)
    file(READ "adapters/torch/${name}.hpp" text)
    string(REPLACE "\"adapters/torch/" "\"allnorm/torch/" text "${text}")
    file(CONFIGURE OUTPUT "torch/${name}.hpp" CONTENT "${text}" @ONLY)
    install(FILES "${CMAKE_CURRENT_BINARY_DIR}/torch/${name}.hpp" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/allnorm/torch"
      COMPONENT development)
  endforeach()
  configure_file(cmake/FindLibtorch.cmake "${PROJECT_BINARY_DIR}/FindLibtorch.cmake" COPYONLY)
  install(FILES cmake/FindLibtorch.cmake DESTINATION "${package_dir}" COMPONENT development)
endif()
foreach(set IN LISTS package_targets)
  install(EXPORT allnorm${set} NAMESPACE allnorm:: DESTINATION "${package_dir}" COMPONENT development)
  export(EXPORT allnorm${set} NAMESPACE allnorm:: FILE "${PROJECT_BINARY_DIR}/allnorm${set}.cmake")
endforeach()

configure_package_config_file(cmake/allnormConfig.cmake.in "${PROJECT_BINARY_DIR}/allnormConfig.cmake"
  INSTALL_DESTINATION "${package_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/allnormConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/allnormConfig.cmake" "${PROJECT_BINARY_DIR}/allnormConfigVersion.cmake"
  DESTINATION "${package_dir}" COMPONENT development)

# pkg-config: allnorm is the C interface in the shared library, allnorm-cxx the C++ library, which is static; with MPI
# also allnorm-mpi. The prefix may be chosen when it is installed.
set(pkg_config_files allnorm allnorm-cxx)
if(ALLNORM_HAVE_MPI)
  list(APPEND pkg_config_files allnorm-mpi)
endif()
set(private_libs "-pthread")
if(ALLNORM_HAVE_CUDA)
  get_target_property(cudart CUDA::cudart_static IMPORTED_LOCATION)
  string(APPEND private_libs " ${cudart} -ldl -lrt")
endif()
if(ALLNORM_HAVE_NCCL)
  string(APPEND private_libs " ${ALLNORM_NCCL_LIBRARY}")
endif()
foreach(name IN LISTS pkg_config_files)
  install(CODE "set(PROJECT_VERSION ${PROJECT_VERSION})
    set(PROJECT_DESCRIPTION \"${PROJECT_DESCRIPTION}\")
    set(CMAKE_INSTALL_LIBDIR \"${CMAKE_INSTALL_LIBDIR}\")
    set(CMAKE_INSTALL_INCLUDEDIR \"${CMAKE_INSTALL_INCLUDEDIR}\")
    set(private_libs \"${private_libs}\")
    configure_file(\"${PROJECT_SOURCE_DIR}/cmake/${name}.pc.in\" \"${PROJECT_BINARY_DIR}/${name}.pc\" @ONLY)"
    COMPONENT development)
  install(FILES "${PROJECT_BINARY_DIR}/${name}.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" COMPONENT development)
endforeach()

# What people read and run.
install(FILES LICENSE README.md CHANGELOG.md DESTINATION "${CMAKE_INSTALL_DOCDIR}" COMPONENT program)
install(DIRECTORY docs/ DESTINATION "${CMAKE_INSTALL_DOCDIR}/docs" COMPONENT program PATTERN site EXCLUDE)
install(DIRECTORY examples/ DESTINATION "${CMAKE_INSTALL_DOCDIR}/examples" COMPONENT development
  FILES_MATCHING REGEX "(\\.(c|cpp|ipynb|py|txt)|/Makefile)$")  # and not what somebody has built there
install(DIRECTORY launch/jobs DESTINATION "${CMAKE_INSTALL_DATADIR}/allnorm" COMPONENT program USE_SOURCE_PERMISSIONS)
install(DIRECTORY data/digits DESTINATION "${CMAKE_INSTALL_DATADIR}/allnorm" COMPONENT program)
